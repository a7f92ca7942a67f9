// Tries one client library on rbee, as people use it: `node run.mjs CLIENT`. It prints a line of
// JSON for each case, {"case", "error"}, with an error where rbee did not answer as the library
// expects. RBEE_URL is the agent's address, RBEE_MODEL a model that chats, RBEE_EMBEDS one for
// embeddings.
const { default: cases } = await import(`./${process.argv[2]}.mjs`);
for (const [name, run] of Object.entries(cases)) {
  const line = { case: name };
  try {
    await run();
  } catch (e) {
    line.error = String(e?.stack ?? e).slice(0, 4000);
  }
  console.log(JSON.stringify(line));
}
process.exit(0); // whatever a library keeps open
