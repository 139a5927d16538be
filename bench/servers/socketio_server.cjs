// Socket.IO on Node. usage: node socketio_server.cjs PORT [REDIS]
const http = require("node:http");
const { Server } = require("socket.io");

const [port, redis] = process.argv.slice(2);

async function adapter(url) {
  const { createClient } = require("redis");
  const { createAdapter } = require("@socket.io/redis-adapter");
  const publisher = createClient({ url });
  const subscriber = publisher.duplicate();
  await Promise.all([publisher.connect(), subscriber.connect()]);
  return createAdapter(publisher, subscriber);
}

async function main() {
  const server = http.createServer();
  const io = new Server(server, redis ? { adapter: await adapter(redis) } : {});
  io.use((socket, next) => {
    const [secret, user] = (socket.handshake.auth.token ?? "").split(":");
    if (user) socket.join(user);
    if (secret === "secret") next();
    else next(new Error("not authorized"));
  });
  io.on("connection", (socket) => {
    socket.on("echo", (payload, answer) => answer(payload));
    socket.on("fan", (payload) => io.emit("fan", payload));
    let sent = 0;
    socket.on("more", (number) => {
      for (const end = sent + number; sent < end; sent++) socket.emit("item", { a: 5, b: 3, n: sent });
    });
    socket.on("pass", (payload) => io.to(payload.to).emit("passed", payload));
  });
  server.listen({ port: Number(port), host: "127.0.0.1", backlog: 2048 });
}

main();
