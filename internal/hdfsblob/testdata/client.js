// Usage: node client.js MODULE HOST:PORT FILE
// Works on a cluster as a user of npm's webhdfs does, and prints what it saw as JSON.
'use strict';
const fs = require('fs');
const { promisify } = require('util');

const [module_, address, file] = process.argv.slice(2);
const [host, port] = address.split(':');
const as = (user) => {
  const client = require(module_).createClient({ user, host, port, path: '/webhdfs/v1' });
  const calls = {};
  for (const name of ['mkdir', 'writeFile', 'appendFile', 'readFile', 'readdir', 'stat', 'rename', 'unlink', 'chmod']) {
    calls[name] = promisify(client[name]).bind(client);
  }
  calls.exists = (path) => new Promise((resolve) => client.exists(path, resolve));
  return calls;
};
const message = (promise) => promise.then(() => 'no error', (err) => err.message);

(async () => {
  const alice = as('alice'), bob = as('bob');
  const content = fs.readFileSync(file);
  const out = {};
  out.same = (await alice.readFile('/ours/file')).equals(content);
  await alice.mkdir('/dir');
  await alice.writeFile('/dir/written', content);
  await alice.rename('/dir/written', '/dir/theirs');
  await alice.writeFile('/dir/appended', 'one ');
  await alice.appendFile('/dir/appended', 'two');
  await alice.writeFile('/dir/removed', 'x');
  await alice.unlink('/dir/removed');
  const status = await alice.stat('/dir/theirs');
  out.length = status.length;
  out.owner = status.owner;
  out.names = (await alice.readdir('/dir')).map((s) => s.pathSuffix);
  out.gone = await alice.exists('/dir/removed');
  out.there = await alice.exists('/dir/theirs');
  await alice.chmod('/dir/appended', '0600');
  out.mode = (await alice.stat('/dir/appended')).permission;
  out.missing = await message(alice.stat('/dir/missing'));
  out.forbidden = await message(bob.mkdir('/dir/bobs'));
  out.notAFolder = await message(alice.mkdir('/dir/theirs/below'));
  console.log(JSON.stringify(out));
})().catch((err) => {
  console.error(err);
  process.exit(1);
});
