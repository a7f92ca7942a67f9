// ollama, the JavaScript library of Ollama.
import { strict as assert } from "node:assert";
import { Ollama } from "ollama";
import { answer, checkArguments, checkVectors, embeds, ended, fails, model, question, tool, url } from "./shared.mjs";

const client = new Ollama({ host: url });
const messages = [{ role: "user", content: question }];
const plain = { model, messages, options: { temperature: 0, num_predict: 64 } };
const tools = [{ type: "function", function: tool }];

export default {
  async chat() {
    const r = await client.chat(plain);
    assert.match(r.message.content, answer);
    assert.equal(r.done, true);
    assert.equal(r.done_reason, "stop");
    assert.ok(r.eval_count > 0 && r.eval_duration >= 0 && r.total_duration > 0);
    assert.ok(!Number.isNaN(new Date(r.created_at).getTime()));
    const g = await client.generate({ model, prompt: question, options: plain.options });
    assert.match(g.response, answer);
  },
  async stream() {
    const whole = await client.chat(plain);
    let text = "", last;
    for await (const part of await client.chat({ ...plain, stream: true })) {
      text += part.message.content;
      last = part;
    }
    assert.equal(text, whole.message.content);
    assert.equal(last.done, true);
    assert.equal(last.eval_count, whole.eval_count);
    text = "";
    for await (const part of await client.generate({ model, prompt: question, options: plain.options, stream: true })) text += part.response;
    assert.equal(text, whole.message.content);
  },
  // Ollama's API cannot force a call: its models decide. What came before a call and after it must
  // be taken.
  async tools() {
    const r = await client.chat({ ...plain, tools });
    for (const c of r.message.tool_calls ?? []) checkArguments(c.function.arguments);
    const history = [...messages, { role: "assistant", content: "", tool_calls: [{ function: { name: tool.name, arguments: { hive: "north" } } }] },
      { role: "tool", tool_name: tool.name, content: "12" }];
    const after = await client.chat({ ...plain, messages: history, tools });
    assert.equal(after.message.role, "assistant");
    assert.equal(after.done, true);
  },
  async structured() {
    const r = await client.chat({ ...plain, format: tool.parameters });
    checkArguments(JSON.parse(r.message.content));
    const g = await client.generate({ model, prompt: question, format: tool.parameters, options: plain.options });
    checkArguments(JSON.parse(g.response));
  },
  async embeddings() {
    const r = await client.embed({ model: embeds, input: ["a", "the end"] });
    checkVectors(r.embeddings[0], r.embeddings[1]);
    const old = await client.embeddings({ model: embeds, prompt: "a" });
    assert.equal(old.embedding.length, r.embeddings[0].length);
  },
  async errors() {
    const e = await fails(client.chat({ ...plain, model: "rbee-tyni" }));
    assert.equal(e.name, "ResponseError");
    assert.equal(e.status_code, 404);
    assert.match(e.message, /rbee-tyni/);
    const bad = await fails(client.chat({ ...plain, options: { temperature: -1 } }));
    assert.equal(bad.status_code, 400);
    const stream = await fails(client.chat({ ...plain, model: "rbee-tyni", stream: true }));
    assert.equal(stream.status_code, 404);
    const show = await fails(client.show({ model: "rbee-tyni" }));
    assert.equal(show.status_code, 404);
  },
  async abort() {
    const stream = await client.chat({ model, messages: [{ role: "user", content: "Tell me a short story about a bee named Pip." }], stream: true });
    const e = await fails((async () => { for await (const _ of stream) stream.abort(); })());
    assert.equal(e.name, "AbortError");
    await ended("/v1/chat/completions");
  },
  async models() {
    const { models } = await client.list();
    assert.ok(models.some((m) => m.name === model && m.size > 0 && /^[0-9a-f]{64}$/.test(m.digest)), JSON.stringify(models));
    const shown = await client.show({ model });
    assert.equal(shown.details.format, "gguf");
    assert.ok(shown.capabilities.includes("completion") && shown.capabilities.includes("tools"), String(shown.capabilities));
    assert.ok((await client.show({ model: embeds })).capabilities.includes("embedding"));
    assert.ok(shown.model_info["llama.context_length"] > 0);
    await client.chat(plain);
    assert.ok((await client.ps()).models.some((m) => m.name === model && m.size > 0));
    assert.match((await client.version()).version, /^\d+\.\d+\.\d+/);
  },
  async pull() {
    let last;
    for await (const p of await client.pull({ model: "builtin:rbee-tiny", stream: true })) last = p;
    assert.equal(last.status, "success");
    assert.equal((await client.pull({ model: "builtin:rbee-tiny" })).status, "success");
  },
};
