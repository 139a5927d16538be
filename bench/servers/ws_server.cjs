// A bare JSON echo on `ws`: no authentication, no calls. usage: node ws_server.cjs PORT
const { WebSocketServer } = require("ws");

const server = new WebSocketServer({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 2048 });
server.on("connection", (socket) => {
  let sent = 0;
  socket.on("message", (data) => {
    const message = JSON.parse(data);
    if (message[0] === "more") {
      for (const end = sent + message[1]; sent < end; sent++) {
        socket.send(JSON.stringify(["item", { a: 5, b: 3, n: sent }, null]));
      }
      return;
    }
    const answer = JSON.stringify(message);
    if (message[0] === "fan") {
      for (const each of server.clients) each.send(answer);
    } else {
      socket.send(answer);
    }
  });
});
