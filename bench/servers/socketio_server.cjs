// Socket.IO on Node. usage: node socketio_server.cjs PORT
const http = require("node:http");
const { Server } = require("socket.io");

const server = http.createServer();
const io = new Server(server);
io.use((socket, next) => {
  if (socket.handshake.auth.token === "secret") next();
  else next(new Error("not authorized"));
});
io.on("connection", (socket) => {
  socket.on("echo", (payload, answer) => answer(payload));
  socket.on("fan", (payload) => io.emit("fan", payload));
});
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 2048 });
