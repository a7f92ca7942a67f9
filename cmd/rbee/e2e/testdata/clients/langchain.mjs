// LangChain: @langchain/openai (chat completions, responses and embeddings) and @langchain/ollama.
import { strict as assert } from "node:assert";
import { HumanMessage, ToolMessage } from "@langchain/core/messages";
import { tool as makeTool } from "@langchain/core/tools";
import { ChatOllama, OllamaEmbeddings } from "@langchain/ollama";
import { ChatOpenAI, OpenAIEmbeddings } from "@langchain/openai";
import { z } from "zod";
import { answer, checkArguments, checkVectors, embeds, ended, fails, model, question, tool, url } from "./shared.mjs";

const configuration = { baseURL: url + "/v1" };
const common = { model, temperature: 0, maxTokens: 64, apiKey: "any", maxRetries: 0, configuration };
const chats = {
  chat: new ChatOpenAI(common),
  responses: new ChatOpenAI({ ...common, useResponsesApi: true }),
  ollama: new ChatOllama({ model, baseUrl: url, temperature: 0, numPredict: 64, maxRetries: 0 }),
};
const count = makeTool(() => "12", { name: tool.name, description: tool.description, schema: z.object({ hive: z.enum(["north", "south"]) }) });
const bee = z.object({ kind: z.enum(["queen", "drone"]), alive: z.boolean() });
const textOf = (m) => m.text ?? m.content;

// each runs a case with every chat model.
async function each(names, run) {
  for (const name of names)
    try {
      await run(chats[name], name);
    } catch (e) {
      throw new Error(`${name}: ${e.stack}`);
    }
}
const all = Object.keys(chats);

export default {
  chat: () => each(all, async (llm) => {
    const m = await llm.invoke(question);
    assert.match(textOf(m), answer);
    assert.ok(m.usage_metadata.output_tokens > 0);
  }),
  stream: () => each(all, async (llm) => {
    let sum;
    for await (const c of await llm.stream(question)) sum = sum ? sum.concat(c) : c;
    assert.match(textOf(sum), answer);
    assert.ok(sum.usage_metadata.output_tokens > 0);
  }),
  tools: () => each(["chat", "responses"], async (llm) => {
    const first = await llm.bindTools([count], { tool_choice: tool.name }).invoke(question);
    assert.equal(first.tool_calls[0].name, tool.name);
    checkArguments(first.tool_calls[0].args);
    const result = await count.invoke(first.tool_calls[0]);
    assert.ok(result instanceof ToolMessage);
    const second = await llm.bindTools([count], { tool_choice: "none" }).invoke([new HumanMessage(question), first, result]);
    assert.ok(textOf(second).length > 0);
  }),
  structured: () => each(all, async (llm) => {
    bee.parse(await llm.withStructuredOutput(bee, { method: "jsonSchema" }).invoke("Tell me about a bee."));
  }),
  async embeddings() {
    for (const e of [new OpenAIEmbeddings({ model: embeds, apiKey: "any", configuration }), new OllamaEmbeddings({ model: embeds, baseUrl: url })]) {
      const [a, b] = await e.embedDocuments(["a", "the end"]);
      checkVectors(a, b);
      assert.equal((await e.embedQuery("a")).length, a.length);
    }
  },
  async errors() {
    for (const useResponsesApi of [false, true]) {
      const e = await fails(new ChatOpenAI({ ...common, model: "rbee-tyni", useResponsesApi }).invoke(question));
      assert.equal(e.lc_error_code ?? e.code, "MODEL_NOT_FOUND", String(e));
    }
    const e = await fails(new ChatOllama({ model: "rbee-tyni", baseUrl: url, maxRetries: 0 }).invoke(question));
    assert.match(e.message, /rbee-tyni/);
  },
  // ChatOllama leaves a stream without a word to the server, so that it is not tried.
  abort: () => each(["chat", "responses"], async (llm) => {
    const gone = new AbortController();
    await fails((async () => {
      for await (const _ of await llm.stream("Tell me a short story about a bee named Pip.", { signal: gone.signal })) gone.abort();
    })());
    await ended("/v1/chat/completions");
  }),
};
