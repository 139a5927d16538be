// Socket.IO with its Redis streams adapter, for bench/inbox.py. usage: node inbox_socketio.cjs REDIS
// It reads commands from stdin, one JSON array a line, and answers each with one line of JSON.
const http = require("node:http");
const readline = require("node:readline");
const { Server } = require("socket.io");
const { createClient } = require("redis");
const { createAdapter } = require("@socket.io/redis-streams-adapter");

const PAYLOAD = "x".repeat(100);
const STREAM = "socket.io";

async function main() {
  const client = createClient({ url: process.argv[2] });
  await client.connect();
  const own = client.duplicate();
  await own.connect();
  const server = http.createServer();
  const io = new Server(server, {
    adapter: createAdapter(client, { maxLen: 10_000_000 }),
    connectionStateRecovery: { maxDisconnectionDuration: 600_000 },
  });
  io.on("connection", (socket) => {
    if (!socket.recovered) socket.join(socket.handshake.auth.user);
  });
  const commands = {
    /** Emit that many messages to each of that many users; until the engine has all. */
    async keep({ users, messages }) {
      const before = Number(await own.sendCommand(["XLEN", STREAM]));
      const wall = performance.now();
      const cpu = process.cpuUsage();
      for (let m = 0; m < messages; m++) {
        for (let u = 0; u < users; u++) io.to(`user ${u}`).emit("note", PAYLOAD);
        await new Promise(setImmediate);
      }
      while (Number(await own.sendCommand(["XLEN", STREAM])) < before + users * messages) {
        await new Promise((resolve) => setTimeout(resolve, 1));
      }
      const { user, system } = process.cpuUsage(cpu);
      return [(performance.now() - wall) / 1000, (user + system) / 1e6];
    },
    cpu() {
      const { user, system } = process.cpuUsage();
      return (user + system) / 1e6;
    },
    /** Wait until the server knows that all clients have gone. */
    async gone() {
      while (io.engine.clientsCount) await new Promise((resolve) => setTimeout(resolve, 5));
      return 0;
    },
  };
  await new Promise((resolve) => server.listen(0, "127.0.0.1", resolve));
  console.log(server.address().port);
  readline.createInterface({ input: process.stdin }).on("line", async (line) => {
    const [name, payload] = JSON.parse(line);
    console.log(JSON.stringify(await commands[name](payload)));
  });
}

main();
