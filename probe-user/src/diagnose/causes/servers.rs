//! What a server of each family is told, where several pages say the same.

use super::super::cause::{FAMILIES, Remedy};

/// A page's own remedies, and after them a table with a row for each family. `ALL` is `OWN` and the families.
pub(super) const fn and_servers<const OWN: usize, const ALL: usize>(
    own: [Remedy; OWN],
    servers: [Remedy; FAMILIES.len()],
) -> [Remedy; ALL] {
    assert!(ALL == OWN + FAMILIES.len(), "a page has its own remedies and one for each family");
    let mut all = [("", ""); ALL];
    let mut index = 0;
    while index < ALL {
        all[index] = if index < OWN { own[index] } else { servers[index - OWN] };
        index += 1;
    }
    all
}

/// Where each server is told the path of its socket, and what becomes of the file.
pub(super) const UNIX_SOCKETS: [Remedy; FAMILIES.len()] = [
    ("gunicorn", "--bind unix:/run/app/app.sock; it removes the old file when it starts."),
    ("uvicorn", "--uds /run/app/app.sock; it removes the old file when it starts."),
    (
        "Node.js",
        "server.listen('/run/app/app.sock') fails with EADDRINUSE while a stale file lies there: unlink it before.",
    ),
    ("Puma", "bind 'unix:///run/app/app.sock'."),
    ("php-fpm", "listen = /run/php/php8.2-fpm.sock in the pool's file: the version is part of the name."),
    ("uWSGI", "--socket /run/app/app.sock (--http-socket where nginx has proxy_pass); --vacuum removes it at the end."),
    (
        "Go",
        "net.Listen(\"unix\", path) fails while a stale file lies there: os.Remove it before; the listener removes it when it is closed.",
    ),
    ("Java", "UnixDomainSocketAddress (16 and newer): Files.deleteIfExists before bind, nobody removes it at the end."),
];

/// Which address and port each server listens on when it is told nothing, and where it is told.
///
/// Puma's default follows <https://github.com/puma/puma/pull/3847>; asyncio sets `IPV6_V6ONLY` on what it binds
/// (<https://github.com/python/cpython/blob/v3.11.2/Lib/asyncio/base_events.py>, `create_server`).
pub(super) const ADDRESSES: [Remedy; FAMILIES.len()] = [
    (
        "gunicorn",
        "Listens on 127.0.0.1:8000 (with $PORT set: 0.0.0.0:$PORT); --bind 10.0.0.5:8000, and again --bind '[::]:8000' for IPv6.",
    ),
    ("uvicorn", "Listens on 127.0.0.1:8000; --host and --port. --host :: takes IPv6 alone."),
    (
        "Node.js",
        "The application names the port (mostly 3000); server.listen(port) takes ::, IPv4 included, or 0.0.0.0 where there is no IPv6.",
    ),
    (
        "Puma",
        "Listens on 0.0.0.0:9292, from 8.0 on [::]:9292 where the host has IPv6; Rails starts it on port 3000. bind 'tcp://10.0.0.5:9292'.",
    ),
    (
        "php-fpm",
        "listen = 10.0.0.5:9000 in the pool's file, or a port alone for every address; Debian's pool is a unix socket, the official container takes port 9000.",
    ),
    ("uWSGI", "No default: --http-socket 10.0.0.5:8000 or --socket 10.0.0.5:3031; ':8000' is every IPv4 address."),
    ("Go", "No default: Addr \":8080\" takes every address of both families, \"10.0.0.5:8080\" that one alone."),
    (
        "Java",
        "Spring Boot: server.port (8080) and server.address (all of both families; -Djava.net.preferIPv4Stack=true leaves IPv4).",
    ),
];

/// Which of each server's connections nginx can keep for the next request, and for how long.
pub(super) const KEPT_CONNECTIONS: [Remedy; FAMILIES.len()] = [
    (
        "gunicorn",
        "The sync worker closes after every response, so each request costs a connection: --worker-class gthread with --keep-alive 75 (default 2 s), or a unix socket.",
    ),
    ("uvicorn", "--timeout-keep-alive 75 (default 5 s) keeps connections for nginx to reuse."),
    (
        "Node.js",
        "server.keepAliveTimeout = 75000 (default 5000 ms) keeps them; server.maxRequestsPerSocket (0: no limit) and a `Connection: close` of the application end them.",
    ),
    (
        "Puma",
        "persistent_timeout 75 (default 65 s, 20 s in older versions); enable_keep_alives false closes after every response.",
    ),
    (
        "php-fpm",
        "Closes after every response unless fastcgi_keep_conn is on, and then each kept connection holds a child: a unix socket is cheaper.",
    ),
    (
        "uWSGI",
        "--socket and --http-socket close after every response: a unix socket, or --http11-socket, which keeps connections.",
    ),
    ("Go", "Keeps connections as long as IdleTimeout (or else ReadTimeout) says; with both 0 without end."),
    (
        "Java",
        "Tomcat: server.tomcat.keep-alive-timeout=75s and server.tomcat.max-keep-alive-requests (default 100, -1: no limit).",
    ),
];

/// Where each server writes down the requests that reached it.
pub(super) const REQUEST_LOGS: [Remedy; FAMILIES.len()] = [
    ("gunicorn", "--access-logfile - writes a line for each request (default: none), --log-level debug more."),
    (
        "uvicorn",
        "Writes a line for each request to stdout unless --no-access-log; --log-level trace shows each ASGI message.",
    ),
    (
        "Node.js",
        "Writes nothing itself: the framework's logger (morgan, pino-http); NODE_DEBUG=http,net shows the server's own steps.",
    ),
    ("Puma", "log_requests true, or --log-requests; Rails writes log/production.log."),
    (
        "php-fpm",
        "access.log = /var/log/php-fpm.access.log in the pool's file; catch_workers_output = yes for what scripts print.",
    ),
    ("uWSGI", "Writes a line for each request unless --disable-logging; --logto FILE."),
    (
        "Go",
        "net/http writes no requests: a handler around the mux; http.Server.ErrorLog takes panics and failed handshakes.",
    ),
    ("Java", "Spring Boot: server.tomcat.accesslog.enabled=true (default false), with server.tomcat.basedir."),
];

/// How each server is replaced by a newer one without a moment in which nobody listens.
///
/// uvicorn's SIGHUP: <https://github.com/Kludex/uvicorn/releases/tag/0.51.0>.
pub(super) const RESTARTS: [Remedy; FAMILIES.len()] = [
    ("gunicorn", "Reload with SIGHUP: the listening socket stays. A restart of the unit closes it."),
    (
        "uvicorn",
        "--workers with SIGHUP replaces them one by one from 0.51 on; before, a systemd .socket unit and --fd 3 keep the socket.",
    ),
    ("Node.js", "cluster or a process manager's reload: a new worker listens before the old one calls server.close()."),
    ("Puma", "phased-restart (SIGUSR1; needs workers and no preload_app!) or restart (SIGUSR2): both keep the socket."),
    (
        "php-fpm",
        "reload (SIGUSR2) keeps the socket; process_control_timeout = 10s, as the default of 0 cuts running requests off.",
    ),
    (
        "uWSGI",
        "--touch-reload or SIGHUP keep the socket; --touch-chain-reload with --lazy-apps replaces workers one by one.",
    ),
    (
        "Go",
        "A systemd .socket unit (net.FileListener on descriptor 3), or SO_REUSEPORT by net.ListenConfig.Control: the new process listens before the old one calls Shutdown.",
    ),
    (
        "Java",
        "The port opens only when the context is up: two instances, restarted in turn, with server.shutdown=graceful.",
    ),
];

/// Whether each server has TCP probe a silent connection, so that what lies between does not forget it.
///
/// Go: <https://pkg.go.dev/net#ListenConfig>; Tomcat: <https://tomcat.apache.org/tomcat-10.1-doc/config/http.html>.
pub(super) const TCP_KEEPALIVE: [Remedy; FAMILIES.len()] = [
    (
        "gunicorn",
        "Sets no SO_KEEPALIVE: --keep-alive below the idle limit on the way, so that the server closes in order.",
    ),
    ("uvicorn", "As gunicorn: --timeout-keep-alive (5 s) below the idle limit."),
    ("Node.js", "http.createServer({ keepAlive: true, keepAliveInitialDelay: 60000 }): off by default."),
    ("Puma", "persistent_timeout (65 s, 20 s in older versions) below the idle limit."),
    ("php-fpm", "Sets no SO_KEEPALIVE; without fastcgi_keep_conn it has no idle connections."),
    ("uWSGI", "--so-keepalive."),
    ("Go", "On by default, every 15 s (net.ListenConfig.KeepAlive)."),
    (
        "Java",
        "Tomcat: socket.soKeepAlive=\"true\" on the Connector (default false); Netty: ChannelOption.SO_KEEPALIVE.",
    ),
];

/// What each server does when the rest of a request does not come.
pub(super) const REQUEST_PATIENCE: [Remedy; FAMILIES.len()] = [
    (
        "gunicorn",
        "A sync worker waits for the rest until --timeout (30 s) aborts it, which looks like a fault of its own: use gthread.",
    ),
    ("uvicorn", "Waits for the rest of a request without end: the connection stays until TCP gives up."),
    ("Node.js", "Answers 408 after server.headersTimeout (60000 ms) or server.requestTimeout (300000 ms)."),
    ("Puma", "Answers 408 after first_data_timeout (30 s)."),
    ("php-fpm", "A child waits for the rest with the request begun; request_terminate_timeout (0: never) ends it."),
    ("uWSGI", "--socket-timeout (4 s) ends the read, with a line in its log."),
    ("Go", "ReadHeaderTimeout and ReadTimeout (both without limit by default) close the connection."),
    ("Java", "Tomcat: connectionTimeout (20 s in server.xml, 60 s without) bounds each wait for more."),
];
