// An HTTP server that says which generation answers. It listens where PORT says, and is healthy
// only after it has prepared itself.
const http = require("http");

let isPrepared = false;
setTimeout(() => { isPrepared = true; }, 200);

http.createServer((request, response) => {
  if (!isPrepared) {
    response.statusCode = 503;
    response.end("not prepared\n");
    return;
  }
  response.end(`generation ${process.env.GENERATION}\n`);
}).listen(process.env.PORT, "127.0.0.1");
