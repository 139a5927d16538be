// A bare JSON echo on `ws`: no authentication, no calls. usage: node ws_server.cjs PORT
const { WebSocketServer } = require("ws");

const server = new WebSocketServer({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 2048 });
server.on("connection", (socket) => {
  socket.on("message", (data) => {
    const message = JSON.parse(data);
    const answer = JSON.stringify(message);
    if (message[0] === "fan") {
      for (const each of server.clients) each.send(answer);
    } else {
      socket.send(answer);
    }
  });
});
