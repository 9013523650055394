//! Nothing is wrong, and nothing is said to be.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixListener;

use anyhow::{Result, ensure};
use probe_tests::lab::Lab;

use crate::scene::{Checked, OK, Server, answering, certificates, serve, text};

#[test]
fn a_healthy_site_has_no_fault() -> Result<()> {
    let lab = Lab::new()?;
    let app = |port: u16| SocketAddr::from((lab.addresses().app, port));
    let pems = certificates(&lab)?;
    let pems = text(&pems)?;
    serve(lab.app(), app(9601), answering(OK))?;
    serve(lab.app(), app(9602), answering(b"\x01\x0a\0\0\0\x00\0\0"))?;
    serve(lab.app(), app(9603), answering(b"VERSION 1.6.18\r\n"))?;
    let behind = format!(
        "server {{ listen 9611; listen 9612 http2; listen 9613 ssl; \
         ssl_certificate {pems}/good.pem; ssl_certificate_key {pems}/leaf.key; server_name app.lab; return 200 ok; }}\n\
         server {{ listen 9613 ssl default_server; ssl_reject_handshake on; }}"
    );
    let _behind = Server::start(&lab, lab.app(), "behind", &behind, 9611)?;
    let socket = lab.directory().join("app.sock");
    let listener = UnixListener::bind(&socket)?;
    fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            let _ = std::io::Read::read(&mut stream, &mut [0; 4_096]);
            let _ = std::io::Write::write_all(&mut stream, OK);
        }
    });
    let ip = lab.addresses().app;
    let http = format!(
        "upstream pool {{ server {ip}:9601; server {ip}:9611; keepalive 8; keepalive_timeout 2s; }}\n\
         server {{ listen 8080; server_name shop.lab;\n\
         location / {{ proxy_pass http://pool; proxy_http_version 1.1; proxy_set_header Connection \"\"; proxy_set_header Host $host; }}\n\
         location /unix/ {{ proxy_pass http://unix:{}:/; }}\n\
         location /tls/ {{ proxy_pass https://{ip}:9613; proxy_ssl_server_name on; proxy_ssl_name app.lab; proxy_ssl_verify on; \
           proxy_ssl_trusted_certificate {pems}/ca.pem; }}\n\
         location /php/ {{ fastcgi_pass {ip}:9602; }}\n\
         location /grpc/ {{ grpc_pass grpc://{ip}:9612; }}\n\
         location /cache/ {{ memcached_pass {ip}:9603; set $memcached_key a; }} }}",
        socket.display()
    );
    let nginx = Server::start_as(&lab, lab.proxy(), "front", "user nobody nogroup;", &http, 8080, &[])?;
    let checked = Checked::of(nginx.master(), &[])?;
    checked.expect(&[])?;
    ensure!(checked.upstreams.len() == 7, "{:#?}", checked.upstreams);
    ensure!(checked.upstreams.iter().all(|one| one["connected"] == true), "{:#?}", checked.upstreams);
    ensure!(checked.stderr.contains("will look up 0 names, connect to 7 upstream servers"), "{}", checked.stderr);
    ensure!(checked.summary["left_out"].as_array().is_some_and(Vec::is_empty), "{}", checked.summary);
    Ok(())
}

/// As in a container: files, processes and network of its own, and the upstream known by name there only.
#[test]
fn names_are_looked_up_where_nginx_runs() -> Result<()> {
    let lab = Lab::new()?;
    let app = SocketAddr::from((lab.addresses().app, 9621));
    serve(lab.app(), app, answering(OK))?;
    let hosts = lab.directory().join("hosts");
    fs::write(&hosts, format!("{} app.compose\n", lab.addresses().app))?;
    let http = "server { listen 8080; location / { proxy_pass http://app.compose:9621; } }";
    let mount = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let through = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &mount, "sh"];
    let nginx = Server::start_as(&lab, lab.proxy(), "contained", "user nobody nogroup;", http, 8080, &through)?;
    let checked = Checked::of(nginx.master(), &[])?;
    checked.expect(&[])?;
    ensure!(checked.upstreams[0]["upstream"] == app.to_string(), "{:#?}", checked.upstreams);
    Ok(())
}
