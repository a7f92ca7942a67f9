// What the clients' cases share: where rbee is, what they ask, and how answers are looked at.
import { strict as assert } from "node:assert";

export const url = process.env.RBEE_URL;
export const model = process.env.RBEE_MODEL;
export const embeds = process.env.RBEE_EMBEDS;

// The question, and a word of the answer that the small model knows.
export const question = "What is a queen?";
export const answer = /queen/i;

// A tool, and the schema that its arguments and structured answers must have.
export const tool = {
  name: "count_bees",
  description: "Counts the bees of a hive",
  parameters: {
    type: "object",
    properties: { hive: { type: "string", enum: ["north", "south"] } },
    required: ["hive"],
    additionalProperties: false,
  },
};

export function checkArguments(value) {
  assert.deepEqual(Object.keys(value), ["hive"]);
  assert.match(value.hive, /^(north|south)$/);
}

// fails returns the error that a promise ends with.
export async function fails(promise) {
  try {
    await promise;
  } catch (e) {
    return e;
  }
  assert.fail("there was no error");
}

// ended waits until rbee has noticed that the client left: its last request of a path is over.
export async function ended(path) {
  for (let i = 0; i < 300; i++) {
    const list = await (await fetch(url + "/v1/requests")).json();
    const last = list.data.filter((r) => r.path === path).sort((a, b) => a.at.localeCompare(b.at)).at(-1);
    assert.ok(last, "rbee has no record of the request");
    if (last.state !== "running") {
      assert.equal(last.problem, "cancelled");
      return;
    }
    await new Promise((r) => setTimeout(r, 20));
  }
  assert.fail("rbee still works for a client that left");
}

// Vectors of two texts: as long as each other, and not the same.
export function checkVectors(a, b) {
  assert.ok(a.length > 0 && a.every(Number.isFinite));
  assert.equal(a.length, b.length);
  assert.notDeepEqual(a, b);
}
