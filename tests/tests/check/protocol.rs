//! What the port speaks is not what nginx expects.

use std::net::SocketAddr;

use anyhow::Result;
use probe_tests::lab::Lab;

use crate::scene::{Checked, OK, Server, answering, certificates, serve, text};

#[test]
fn every_misunderstanding_is_found() -> Result<()> {
    let lab = Lab::new()?;
    let app = |port: u16| SocketAddr::from((lab.addresses().app, port));
    let pems = certificates(&lab)?;
    let pems = text(&pems)?;
    serve(lab.app(), app(9901), answering(OK))?;
    serve(lab.app(), app(9902), answering(b"SSH-2.0-OpenSSH_9.2\r\n"))?;
    serve(lab.app(), app(9903), answering(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n"))?;
    serve(lab.app(), app(9904), answering(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 0\r\n\r\n"))?;
    let big: &'static [u8] =
        format!("HTTP/1.1 200 OK\r\nSet-Cookie: a={}\r\nContent-Length: 0\r\n\r\n", "x".repeat(9_000))
            .leak()
            .as_bytes();
    serve(lab.app(), app(9905), answering(big))?;
    let tls = |port: u16, pem: &str| {
        format!(
            "server {{ listen {port} ssl; ssl_certificate {pems}/{pem}; ssl_certificate_key {pems}/leaf.key; return 200; }}\n"
        )
    };
    let behind = format!(
        "server {{ listen 9911; }}\n{}{}{}\
         server {{ listen 9915 ssl; server_name app.lab; ssl_certificate {pems}/good.pem; ssl_certificate_key {pems}/leaf.key; }}\n\
         server {{ listen 9915 ssl default_server; ssl_reject_handshake on; }}",
        tls(9912, "good.pem"),
        tls(9913, "old.pem"),
        tls(9914, "own.pem"),
    );
    let _behind = Server::start(&lab, lab.app(), "behind", &behind, 9911)?;
    let ip = lab.addresses().app;
    let verified = |port: u16, name: &str| {
        format!(
            "location /v{port}{name} {{ proxy_pass https://{ip}:{port}; proxy_ssl_verify on; proxy_ssl_name {name}; \
             proxy_ssl_server_name on; proxy_ssl_trusted_certificate {pems}/ca.pem; }}\n"
        )
    };
    let http = format!(
        "server {{ listen 8080;\n\
         location /a {{ proxy_pass https://{ip}:9901; }} location /b {{ proxy_pass http://{ip}:9902; }}\n\
         location /c {{ fastcgi_pass {ip}:9903; }} location /d {{ proxy_pass http://{ip}:9904; }}\n\
         location /e {{ proxy_pass http://{ip}:9905; }} location /f {{ proxy_pass http://{ip}:9912; }}\n\
         location /g {{ proxy_pass https://{ip}:9915; proxy_ssl_name app.lab; }} location /h {{ grpc_pass grpc://{ip}:9911; }}\n\
         {}{}{} }}",
        verified(9913, "app.lab"),
        verified(9914, "app.lab"),
        verified(9912, "other.lab"),
    );
    let nginx = Server::start(&lab, lab.proxy(), "front", &http, 8080)?;
    let checked = Checked::of(nginx.master(), &[])?;
    let wrong_name = "tls-certificate-invalid";
    // The TLS port is used twice: with plain HTTP, and with the wrong name; the last finding of a subject counts.
    let mut found = checked.faults();
    let doubled = found.remove(&app(9912).to_string());
    anyhow::ensure!(doubled.as_deref().is_some_and(|cause| cause == wrong_name || cause == "-"), "{doubled:?}");
    let expected = [
        (9901, "tls-handshake-failed"),
        (9902, "invalid-response"),
        (9903, "fastcgi-error"),
        (9904, "upstream-sent-502"),
        (9905, "header-too-big"),
        (9911, "grpc-error"),
        (9913, "tls-certificate-invalid"),
        (9914, "tls-certificate-invalid"),
        (9915, "tls-handshake-failed"),
    ];
    let expected = expected.iter().map(|(port, cause)| (app(*port).to_string(), (*cause).to_owned())).collect();
    anyhow::ensure!(found == expected, "found {found:#?}\nexpected {expected:#?}\n{:#?}", checked.findings);
    let of_tls_port: Vec<_> =
        checked.findings.iter().filter(|finding| finding["subject"] == app(9912).to_string()).collect();
    anyhow::ensure!(of_tls_port.len() == 2, "{of_tls_port:#?}");
    anyhow::ensure!(of_tls_port.iter().any(|finding| finding["title"].to_string().contains("speaks TLS")));
    Ok(())
}
