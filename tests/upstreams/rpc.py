"""A gRPC server: rpc.py ADDRESS:PORT. One service without a schema, so that nothing has to be generated: bytes in, the same bytes out.

/lab.Shop/Echo answers at once, /lab.Shop/Hang never, /lab.Shop/Stop stops the server with the call still running.
"""

import sys
import threading
import time
from concurrent import futures

import grpc


def main():
    server = grpc.server(futures.ThreadPoolExecutor(max_workers=8))

    def hang(request, context):
        time.sleep(3600)

    def stop(request, context):
        # No grace: GOAWAY, then every stream is cancelled.
        threading.Thread(target=server.stop, args=(None,)).start()
        time.sleep(3600)

    handlers = {
        "Echo": grpc.unary_unary_rpc_method_handler(lambda request, context: request),
        "Hang": grpc.unary_unary_rpc_method_handler(hang),
        "Stop": grpc.unary_unary_rpc_method_handler(stop),
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler("lab.Shop", handlers),))
    if server.add_insecure_port(sys.argv[1]) == 0:
        sys.exit("cannot listen on " + sys.argv[1])
    server.start()
    while True:
        time.sleep(3600)


main()
