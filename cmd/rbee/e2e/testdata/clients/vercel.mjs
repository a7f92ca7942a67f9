// Vercel's AI SDK: @ai-sdk/openai (responses and chat), @ai-sdk/openai-compatible,
// @ai-sdk/anthropic.
import { strict as assert } from "node:assert";
import { createAnthropic } from "@ai-sdk/anthropic";
import { createOpenAI } from "@ai-sdk/openai";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, embedMany, generateText, jsonSchema, Output, stepCountIs, streamText, tool as makeTool } from "ai";
import { z } from "zod";
import { answer, checkArguments, checkVectors, embeds, ended, fails, model, question, tool, url } from "./shared.mjs";

const openai = createOpenAI({ baseURL: url + "/v1", apiKey: "any" });
const compatible = createOpenAICompatible({ name: "rbee", baseURL: url + "/v1", includeUsage: true, supportsStructuredOutputs: true });
const anthropic = createAnthropic({ baseURL: url + "/v1", apiKey: "any" });
const providers = {
  responses: (id) => openai.responses(id), chat: (id) => openai.chat(id),
  compatible: (id) => compatible.chatModel(id), anthropic: (id) => anthropic(id),
};
const plain = { temperature: 0, maxOutputTokens: 64, maxRetries: 0 };
const bee = z.object({ kind: z.enum(["queen", "drone"]), alive: z.boolean() });

async function each(run) {
  for (const [name, make] of Object.entries(providers))
    try {
      await run(make(model), make);
    } catch (e) {
      throw new Error(`${name}: ${e.stack} ${e.responseBody ?? ""}`);
    }
}

export default {
  chat: () => each(async (llm) => {
    const r = await generateText({ ...plain, model: llm, prompt: question });
    assert.match(r.text, answer);
    assert.equal(r.finishReason, "stop");
    assert.ok(r.usage.outputTokens > 0);
  }),
  stream: () => each(async (llm) => {
    const r = streamText({ ...plain, model: llm, prompt: question });
    let text = "";
    for await (const part of r.textStream) text += part;
    assert.match(text, answer);
    assert.equal(await r.finishReason, "stop");
    assert.ok((await r.usage).outputTokens > 0);
  }),
  tools: () => each(async (llm) => {
    let asked = 0;
    const tools = {
      [tool.name]: makeTool({ description: tool.description, inputSchema: jsonSchema(tool.parameters), execute: (a) => (checkArguments(a), asked++, "12") }),
    };
    const prepareStep = ({ stepNumber }) => ({ toolChoice: stepNumber === 0 ? { type: "tool", toolName: tool.name } : "none" });
    const r = await generateText({ ...plain, model: llm, prompt: question, tools, prepareStep, stopWhen: stepCountIs(2) });
    assert.equal(asked, 1);
    assert.equal(r.steps.length, 2);
    assert.ok(r.text.length > 0);
    const s = streamText({ ...plain, model: llm, prompt: question, tools, prepareStep, stopWhen: stepCountIs(2) });
    await s.consumeStream();
    assert.equal((await s.steps).length, 2);
    assert.equal(asked, 2);
  }),
  structured: () => each(async (llm) => {
    const r = await generateText({ ...plain, model: llm, prompt: "Tell me about a bee.", output: Output.object({ schema: bee }) });
    bee.parse(r.output);
    const s = streamText({ ...plain, model: llm, prompt: "Tell me about a bee.", output: Output.object({ schema: bee }) });
    await s.consumeStream();
    bee.parse(await s.output);
  }),
  async embeddings() {
    for (const m of [openai.embedding(embeds), compatible.embeddingModel(embeds)]) {
      const r = await embedMany({ model: m, values: ["a", "the end"], maxRetries: 0 });
      checkVectors(r.embeddings[0], r.embeddings[1]);
    }
  },
  errors: () => each(async (_, make) => {
    const e = await fails(generateText({ ...plain, model: make("rbee-tyni"), prompt: question }));
    assert.ok(APICallError.isInstance(e), String(e));
    assert.equal(e.statusCode, 404);
    assert.equal(e.isRetryable, false);
    assert.match(e.message, /rbee-tyni/);
  }),
  abort: () => each(async (llm) => {
    const gone = new AbortController();
    const r = streamText({ model: llm, prompt: "Tell me a short story about a bee named Pip.", maxOutputTokens: 900, maxRetries: 0, abortSignal: gone.signal, onError() {} });
    for await (const part of r.fullStream) if (part.type === "text-delta") gone.abort();
    await ended("/v1/chat/completions");
  }),
};
