// @anthropic-ai/sdk.
import { strict as assert } from "node:assert";
import Anthropic from "@anthropic-ai/sdk";
import { zodOutputFormat } from "@anthropic-ai/sdk/helpers/zod";
import { z } from "zod";
import { answer, checkArguments, ended, fails, model, question, tool, url } from "./shared.mjs";

const client = new Anthropic({ baseURL: url, apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const plain = { model, messages, temperature: 0, max_tokens: 64 };
const tools = [{ name: tool.name, description: tool.description, input_schema: tool.parameters }];
const bee = z.object({ kind: z.enum(["queen", "drone"]), alive: z.boolean() });

export default {
  async chat() {
    const m = await client.messages.create({ ...plain, system: "Be brief." });
    assert.equal(m.content[0].type, "text");
    assert.equal(m.role, "assistant");
    assert.equal(m.stop_reason, "end_turn");
    assert.ok(m.usage.output_tokens > 0);
    assert.match((await client.messages.create(plain)).content[0].text, answer);
  },
  async stream() {
    const whole = await client.messages.create(plain);
    let text = "";
    const stream = client.messages.stream(plain).on("text", (t) => (text += t));
    const last = await stream.finalMessage();
    assert.equal(text, whole.content[0].text);
    assert.equal(last.content[0].text, text);
    assert.equal(last.usage.output_tokens, whole.usage.output_tokens);
  },
  async tools() {
    const ask = { ...plain, tools, tool_choice: { type: "tool", name: tool.name } };
    const first = await client.messages.create(ask);
    const use = first.content.find((b) => b.type === "tool_use");
    assert.equal(first.stop_reason, "tool_use");
    assert.equal(use.name, tool.name);
    checkArguments(use.input);
    const history = [...messages, { role: "assistant", content: first.content },
      { role: "user", content: [{ type: "tool_result", tool_use_id: use.id, content: [{ type: "text", text: "12" }] }] }];
    const second = await client.messages.create({ ...plain, tools, messages: history, tool_choice: { type: "none" } });
    assert.equal(second.content[0].type, "text");
    const streamed = await client.messages.stream({ ...ask, tool_choice: { type: "any" } }).finalMessage();
    checkArguments(streamed.content.find((b) => b.type === "tool_use").input);
  },
  async structured() {
    const m = await client.messages.parse({ ...plain, output_config: { format: zodOutputFormat(bee) } });
    bee.parse(m.parsed_output);
  },
  async errors() {
    const e = await fails(client.messages.create({ ...plain, model: "rbee-tyni" }));
    assert.ok(e instanceof Anthropic.NotFoundError, String(e));
    assert.equal(e.error.error.type, "not_found_error");
    const bad = await fails(client.messages.create({ ...plain, messages: [] }));
    assert.ok(bad instanceof Anthropic.BadRequestError, String(bad));
    assert.equal(bad.error.error.type, "invalid_request_error");
    const long = await fails(client.messages.create({ ...plain, stream: true, messages: [{ role: "user", content: "bee ".repeat(4000) }] }));
    assert.ok(long instanceof Anthropic.BadRequestError, String(long));
  },
  async abort() {
    const stream = client.messages.stream({ ...plain, max_tokens: 900, messages: [{ role: "user", content: "Tell me a short story about a bee named Pip." }] });
    stream.on("text", () => stream.abort());
    assert.ok((await fails(stream.done())) instanceof Anthropic.APIUserAbortError);
    await ended("/v1/chat/completions");
  },
  async models() {
    const list = [];
    for await (const m of client.models.list()) list.push(m);
    assert.ok(list.some((m) => m.id === model), JSON.stringify(list));
    assert.ok(list.every((m) => m.type === "model" && m.display_name && m.created_at), JSON.stringify(list));
    const one = await client.models.retrieve(model);
    assert.equal(one.id, model);
    assert.equal(one.type, "model");
    const none = await fails(client.models.retrieve("nobody"));
    assert.ok(none instanceof Anthropic.NotFoundError, String(none));
    assert.equal(none.error.error?.type, "not_found_error");
  },
  async count() {
    const n = await client.messages.countTokens({ model, messages });
    const m = await client.messages.create(plain);
    assert.equal(n.input_tokens, m.usage.input_tokens + (m.usage.cache_read_input_tokens ?? 0));
  },
};
