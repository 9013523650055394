// A plain Node.js HTTP server: node server.js ADDRESS PORT [KEEPALIVE_MS]
// It answers every request with 200, closes idle connections after KEEPALIVE_MS (Node's own default: 5000) and is otherwise Node as it is:
// an exception that nobody catches (/throw) ends the process, and while JavaScript runs (/block/MS) nothing else happens.
'use strict';
const http = require('node:http');

const [address, port, keepAlive] = process.argv.slice(2);
const server = http.createServer((request, response) => {
  request.resume();
  request.on('end', () => {
    if (request.url.startsWith('/throw')) throw new Error('nobody catches this');
    const block = request.url.match(/^\/block\/(\d+)/);
    for (const until = Date.now() + Number(block?.[1] ?? 0); Date.now() < until; );
    const body = 'hello from node\n';
    response.writeHead(200, { 'Content-Type': 'text/plain', 'Content-Length': Buffer.byteLength(body) });
    response.end(body);
  });
});
if (keepAlive !== undefined) server.keepAliveTimeout = Number(keepAlive);
server.listen({ host: address, port: Number(port) });
