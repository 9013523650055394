// A gRPC server on Node.js's own HTTP/2 (what @grpc/grpc-js stands on): node frames.js ADDRESS PORT
// /lab.Shop/Echo answers with the request's message, /lab.Shop/Reset ends the stream with RST_STREAM, /lab.Shop/Goaway the connection
// with GOAWAY (not in its first stream).
'use strict';
const http2 = require('node:http2');

const [address, port] = process.argv.slice(2);
const { NGHTTP2_INTERNAL_ERROR, NGHTTP2_ENHANCE_YOUR_CALM } = http2.constants;

const server = http2.createServer();
server.on('stream', (stream, headers) => {
  const parts = [];
  stream.on('error', () => {});
  stream.on('data', (part) => parts.push(part));
  stream.on('end', () => {
    switch (headers[':path']) {
      case '/lab.Shop/Reset':
        stream.close(NGHTTP2_INTERNAL_ERROR);
        break;
      case '/lab.Shop/Goaway':
        // Only the stream before (a client's have odd numbers) was handled, this one was not.
        stream.session.goaway(NGHTTP2_ENHANCE_YOUR_CALM, stream.id - 2);
        break;
      default:
        stream.on('wantTrailers', () => stream.sendTrailers({ 'grpc-status': '0' }));
        stream.respond({ ':status': 200, 'content-type': 'application/grpc' }, { waitForTrailers: true });
        stream.end(Buffer.concat(parts));
    }
  });
});
server.listen({ host: address, port: Number(port) });
