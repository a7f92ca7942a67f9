// openai-node: chat completions, completions, responses, embeddings and models.
import { strict as assert } from "node:assert";
import OpenAI from "openai";
import { zodResponseFormat, zodTextFormat } from "openai/helpers/zod";
import { z } from "zod";
import { answer, checkArguments, checkVectors, embeds, ended, fails, model, question, tool, url } from "./shared.mjs";

const client = new OpenAI({ baseURL: url + "/v1", apiKey: "any", maxRetries: 0 });
const messages = [{ role: "user", content: question }];
const plain = { model, messages, temperature: 0, max_tokens: 64 };
const tools = [{ type: "function", function: { ...tool, strict: true } }];
const bee = z.object({ kind: z.enum(["queen", "drone"]), alive: z.boolean() });

async function refused(promise, status, code) {
  const e = await fails(promise);
  assert.ok(e instanceof OpenAI.APIError, String(e));
  assert.equal(e.status, status);
  assert.equal(e.code, code);
  return e;
}

export default {
  async chat() {
    const r = await client.chat.completions.create(plain);
    assert.match(r.choices[0].message.content, answer);
    assert.equal(r.choices[0].finish_reason, "stop");
    assert.equal(r.usage.total_tokens, r.usage.prompt_tokens + r.usage.completion_tokens);
    const two = await client.chat.completions.create({ ...plain, n: 2, logprobs: true, top_logprobs: 1, seed: 1 });
    assert.equal(two.choices.length, 2);
    assert.equal(two.choices[1].logprobs.content[0].top_logprobs.length, 1);
  },
  async stream() {
    const whole = await client.chat.completions.create(plain);
    const stream = client.chat.completions.stream({ ...plain, stream_options: { include_usage: true } });
    let text = "";
    stream.on("content", (delta) => (text += delta));
    const last = await stream.finalChatCompletion();
    assert.equal(text, whole.choices[0].message.content);
    assert.equal(last.choices[0].message.content, text);
    assert.deepEqual(last.usage.total_tokens, whole.usage.total_tokens);
  },
  async tools() {
    const first = await client.chat.completions.create({ ...plain, tools, tool_choice: "required" });
    const call = first.choices[0].message.tool_calls[0];
    assert.equal(first.choices[0].finish_reason, "tool_calls");
    assert.equal(call.function.name, tool.name);
    checkArguments(JSON.parse(call.function.arguments));
    const history = [...messages, first.choices[0].message, { role: "tool", tool_call_id: call.id, content: "12" }];
    const second = await client.chat.completions.create({ ...plain, messages: history, tools, tool_choice: "none" });
    assert.ok(second.choices[0].message.content.length > 0);

    const named = { type: "function", function: { name: tool.name } };
    const stream = client.chat.completions.stream({ ...plain, tools, tool_choice: named });
    const streamed = (await stream.finalChatCompletion()).choices[0].message.tool_calls[0];
    assert.equal(streamed.function.name, tool.name);
    checkArguments(streamed.function.parsed_arguments ?? JSON.parse(streamed.function.arguments));

    let asked = 0; // the library's own loop
    const runner = client.chat.completions.runTools({
      ...plain,
      tool_choice: named,
      tools: [{ type: "function", function: { ...tool, parse: JSON.parse, function: (a) => (checkArguments(a), asked++, "12") } }],
    });
    await runner.done();
    assert.equal(asked, 1);
  },
  async structured() {
    const r = await client.chat.completions.parse({ ...plain, temperature: 1, response_format: zodResponseFormat(bee, "bee") });
    bee.parse(r.choices[0].message.parsed);
    const object = await client.chat.completions.create({ ...plain, max_tokens: 200, response_format: { type: "json_object" } });
    if (object.choices[0].finish_reason === "stop") JSON.parse(object.choices[0].message.content);
  },
  async embeddings() {
    for (const form of [undefined, "float", "base64"]) {
      const r = await client.embeddings.create({ model: embeds, input: ["a", "the end"], ...(form && { encoding_format: form }) });
      assert.equal(r.object, "list");
      if (form !== "base64") checkVectors(r.data[0].embedding, r.data[1].embedding);
      assert.ok(r.usage.prompt_tokens > 0);
    }
  },
  async errors() {
    const e = await refused(client.chat.completions.create({ ...plain, model: "rbee-tyni" }), 404, "model_not_found");
    assert.ok(e instanceof OpenAI.NotFoundError);
    assert.equal(e.param, "model");
    const bad = await fails(client.chat.completions.create({ ...plain, temperature: -1 }));
    assert.ok(bad instanceof OpenAI.BadRequestError, String(bad));
    assert.equal(bad.param, "temperature");
    const long = [{ role: "user", content: "bee ".repeat(4000) }];
    await refused(client.chat.completions.create({ ...plain, messages: long }), 400, "context_length_exceeded");
    await refused(client.chat.completions.create({ ...plain, messages: long, stream: true }), 400, "context_length_exceeded");
    await refused(client.responses.create({ model: "rbee-tyni", input: question }), 404, "model_not_found");
    await refused(client.responses.retrieve("resp_unknown"), 404, "response_not_found");
    const none = await fails(client.moderations.create({ model, input: "a" }));
    assert.ok(none instanceof OpenAI.APIError && none.status >= 400, String(none));
  },
  async abort() {
    const stream = await client.chat.completions.create({ ...plain, max_tokens: 900, ignore_eos: true, stream: true });
    let n = 0;
    for await (const _ of stream) if (++n === 3) stream.controller.abort();
    await ended("/v1/chat/completions");
    const gone = new AbortController();
    const whole = client.chat.completions.create({ ...plain, max_tokens: 900, ignore_eos: true }, { signal: gone.signal });
    setTimeout(() => gone.abort(), 100);
    assert.ok((await fails(whole)) instanceof OpenAI.APIUserAbortError);
    await ended("/v1/chat/completions");
  },
  async models() {
    const ids = [];
    for await (const m of client.models.list()) ids.push(m.id);
    assert.ok(ids.includes(model) && ids.includes(embeds), String(ids));
    const one = await client.models.retrieve(model);
    assert.equal(one.id, model);
    assert.equal(one.object, "model");
    await refused(client.models.retrieve("nobody/nothing"), 404, "model_not_found");
  },
  async completions() {
    const ask = { model, prompt: "Once upon a time", max_tokens: 5, temperature: 0 };
    const r = await client.completions.create(ask);
    assert.equal(r.choices[0].finish_reason, "length");
    let text = "";
    for await (const c of await client.completions.create({ ...ask, stream: true })) text += c.choices[0]?.text ?? "";
    assert.equal(text, r.choices[0].text);
    const two = await client.completions.create({ ...ask, prompt: ["a", "b"], echo: true });
    assert.deepEqual(two.choices.map((c) => c.text[0]), ["a", "b"]);
  },
  async responses() {
    const ask = { model, input: question, temperature: 0, max_output_tokens: 64 };
    const r = await client.responses.create(ask);
    assert.match(r.output_text, answer);
    assert.equal(r.status, "completed");
    const stream = client.responses.stream(ask);
    let text = "";
    stream.on("response.output_text.delta", (e) => (text += e.delta));
    assert.equal((await stream.finalResponse()).output_text, r.output_text);
    assert.equal(text, r.output_text);

    const rtools = [{ type: "function", ...tool, strict: true }];
    const called = await client.responses.create({ ...ask, tools: rtools, tool_choice: "required" });
    const call = called.output.find((o) => o.type === "function_call");
    checkArguments(JSON.parse(call.arguments));
    const after = await client.responses.create({
      ...ask, previous_response_id: called.id, input: [{ type: "function_call_output", call_id: call.call_id, output: "12" }],
    });
    assert.ok(after.output_text.length > 0);
    const formed = await client.responses.parse({ ...ask, text: { format: zodTextFormat(bee, "bee") } });
    bee.parse(formed.output_parsed);
    const counted = await client.responses.inputTokens.count({ model, input: question });
    assert.equal(counted.input_tokens, r.usage.input_tokens);

    const kept = await client.responses.retrieve(r.id);
    assert.equal(kept.id, r.id);
    assert.equal(kept.output_text, r.output_text);
    const items = [];
    for await (const item of client.responses.inputItems.list(r.id)) items.push(item);
    assert.equal(items[0].role, "user");
    await refused(client.responses.cancel(r.id), 400, null); // only a background response can be cancelled
    await client.responses.delete(r.id);
    await refused(client.responses.retrieve(r.id), 404, "response_not_found");
    await refused(client.responses.create({ ...ask, previous_response_id: r.id }), 404, "previous_response_not_found");
  },
};
