//! An nginx configuration, built from pieces.

use std::fmt::Write;
use std::path::Path;

/// The port nginx listens on.
pub const PORT: u16 = 8080;
/// The port for TLS.
pub const TLS_PORT: u16 = 8443;

/// What goes into `nginx.conf`.
#[derive(Debug, Clone)]
pub struct Config {
    /// `worker_processes`.
    pub workers: u32,
    /// `user`, with its group where that has another name.
    pub user: &'static str,
    /// `worker_connections`.
    pub connections: u32,
    /// What `/etc/hosts` says to this nginx alone; the host's own file when `None`. The file lies as `hosts` in its directory.
    pub hosts: Option<String>,
    /// `worker_rlimit_nofile`.
    pub open_files: Option<u64>,
    /// The port, on every IPv4 and IPv6 address.
    pub port: u16,
    /// The level of `error_log`.
    pub error_level: &'static str,
    /// Speaks TLS too, HTTP/1.1 and HTTP/2, on [`TLS_PORT`].
    pub tls: bool,
    /// Runs as in a container: pid, mount and network namespaces of its own, a configuration that only those show, logs to stderr and
    /// stdout, which are pipes.
    pub container: bool,
    /// Further lines of the main context.
    pub main: String,
    /// Upstream blocks and other lines of the http context.
    pub http: String,
    /// Locations and other lines of the server context.
    pub server: String,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            workers: 2,
            user: "root",
            connections: 1024,
            hosts: None,
            open_files: None,
            port: PORT,
            error_level: "error",
            tls: false,
            container: false,
            main: String::new(),
            http: String::new(),
            server: String::new(),
        }
    }
}

impl Config {
    /// Adds an `upstream` block.
    pub fn upstream(&mut self, name: &str, lines: &[&str]) {
        let _ = writeln!(self.http, "    upstream {name} {{ {} }}", lines.join(" "));
    }

    /// Adds a prefix location.
    pub fn location(&mut self, prefix: &str, lines: &[&str]) {
        let _ = writeln!(self.server, "        location {prefix} {{ {} }}", lines.join(" "));
    }

    /// The text of `nginx.conf`; everything it names lies in `directory`, which pieces may call `@DIR@`.
    #[must_use]
    pub fn render(&self, directory: &Path) -> String {
        let dir = directory.display();
        let limit = self.open_files.map(|limit| format!("worker_rlimit_nofile {limit};\n")).unwrap_or_default();
        let (errors, accesses) = if self.container {
            ("/dev/stderr".to_owned(), "/dev/stdout".to_owned())
        } else {
            (format!("{dir}/error.log"), format!("{dir}/access.log"))
        };
        let tls = if self.tls {
            format!(
                "        listen 0.0.0.0:{TLS_PORT} ssl http2;\n\
                 \x20       listen [::]:{TLS_PORT} ssl http2 ipv6only=on;\n\
                 \x20       ssl_certificate {dir}/certificate.pem;\n\
                 \x20       ssl_certificate_key {dir}/key.pem;\n"
            )
        } else {
            String::new()
        };
        let Self { workers, user, connections, port, error_level, main, http, server, .. } = self;
        let text = format!(
            "user {user};\n\
             daemon off;\n\
             pid {dir}/nginx.pid;\n\
             worker_processes {workers};\n\
             {limit}\
             error_log {errors} {error_level};\n\
             {main}\
             events {{ worker_connections {connections}; }}\n\
             http {{\n\
             \x20   log_format lab '$status \"$upstream_status\" \"$upstream_addr\" \"$upstream_cache_status\" $remote_addr $remote_port $pid $connection \"$request\"';\n\
             \x20   access_log {accesses} lab;\n\
             \x20   keepalive_requests 1000000;\n\
             \x20   client_body_temp_path {dir}/body;\n\
             \x20   proxy_temp_path {dir}/proxy;\n\
             \x20   fastcgi_temp_path {dir}/fastcgi;\n\
             \x20   uwsgi_temp_path {dir}/uwsgi;\n\
             \x20   scgi_temp_path {dir}/scgi;\n\
             {http}\
             \x20   server {{\n\
             \x20       listen 0.0.0.0:{port};\n\
             \x20       listen [::]:{port} ipv6only=on;\n\
             {tls}\
             \x20       location = /lab-ready {{ return 204; }}\n\
             {server}\
             \x20   }}\n\
             }}\n"
        );
        text.replace("@DIR@", &dir.to_string())
    }
}
