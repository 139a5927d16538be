// Clients for bench/inbox.py. usage: node inbox_socketio.cjs PORT CLIENTS. Commands are lines of stdin, as for its server.
const readline = require("node:readline");
const { io } = require("socket.io-client");

const [port, clients] = process.argv.slice(2).map(Number);
const sockets = [];
let received = 0;

const until = async (condition) => {
  const end = performance.now() + 60_000;
  while (!condition() && performance.now() < end) await new Promise((resolve) => setTimeout(resolve, 2));
};

const commands = {
  async connect() {
    for (let n = 0; n < clients; n++) {
      const socket = io(`http://127.0.0.1:${port}`, { auth: { user: `user ${n}` }, transports: ["websocket"], reconnection: false, forceNew: true });
      socket.on("note", () => received++);
      sockets.push(socket);
    }
    await until(() => sockets.every((socket) => socket.connected));
    return sockets.filter((socket) => socket.connected).length;
  },
  async until(count) {
    await until(() => received >= count);
    return received;
  },
  /** Lose the connections, as a network does. */
  async lose() {
    for (const socket of sockets) socket.io.engine.close();
    await until(() => sockets.every((socket) => !socket.connected));
    return 0;
  },
  /** Come back, and get what was missed; seconds, how many messages have come, how many sessions were recovered. */
  async back(count) {
    const before = received;
    const begin = performance.now();
    for (const socket of sockets) socket.connect();
    await until(() => received >= before + count);
    return [(performance.now() - begin) / 1000, received - before, sockets.filter((socket) => socket.recovered).length];
  },
};

readline.createInterface({ input: process.stdin }).on("line", async (line) => {
  const [name, payload] = JSON.parse(line);
  console.log(JSON.stringify(await commands[name](payload)));
});
