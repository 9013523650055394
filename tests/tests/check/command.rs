//! The command's own behaviour: what it refuses, what it leaves out, what it prints.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use probe_tests::lab::Lab;
use probe_tests::probe::output;

use crate::scene::{Checked, Server, answering, serve};

#[test]
fn bad_usage_and_unreadable_files_exit_2() -> Result<()> {
    let wrong: [&[&str]; 6] = [
        &["check", "--probe-path", "health"],
        &["check", "--since", "soon"],
        &["check", "--conf", "/nonexistent/nginx.conf"],
        &["check", "--conf", "/bin/true"],
        &["check", "--conf", "/etc/nginx/nginx.conf", "--pid", "1"],
        &["check", "--no-request", "--head"],
    ];
    for arguments in wrong {
        let printed = output(arguments)?;
        ensure!(printed.status.code() == Some(2), "{arguments:?} exits {}: {}", printed.status, printed.stderr);
        ensure!(!printed.stderr.is_empty() && printed.stdout.is_empty(), "{arguments:?}: {}", printed.stdout);
    }
    let printed = output(&["check", "--pid", "1"])?;
    ensure!(printed.status.code() == Some(3), "{} {}", printed.status, printed.stderr);
    Ok(())
}

#[test]
fn without_requests_only_connections_are_made() -> Result<()> {
    let lab = Lab::new()?;
    let app = SocketAddr::from((lab.addresses().app, 9631));
    let (sender, receiver) = std::sync::mpsc::channel();
    let sender = std::sync::Arc::new(std::sync::Mutex::new(sender));
    serve(lab.app(), app, move |mut stream| {
        let mut bytes = Vec::new();
        let _ = std::io::Read::read_to_end(&mut stream, &mut bytes);
        if let Ok(sender) = sender.lock() {
            let _ = sender.send(bytes);
        }
    })?;
    let http = format!("server {{ listen 8080; location / {{ proxy_pass http://{app}; }} }}");
    let nginx = Server::start(&lab, lab.proxy(), "front", &http, 8080)?;
    let checked = Checked::of(nginx.master(), &["--no-request"])?;
    checked.expect(&[])?;
    ensure!(checked.stderr.contains("no request"), "{}", checked.stderr);
    let sent = receiver.recv_timeout(Duration::from_secs(5))?;
    ensure!(sent.is_empty(), "{sent:?}");
    ensure!(receiver.try_recv().is_err(), "one connection");
    Ok(())
}

/// What upstreams, names and files say is text, whatever it would be to a terminal.
#[test]
fn hostile_words_are_only_text() -> Result<()> {
    let lab = Lab::new()?;
    let app = |port: u16| SocketAddr::from((lab.addresses().app, port));
    serve(lab.app(), app(9641), answering(b"\x1b]0;owned\x07\x1b[2J<script>alert(1)</script>\r\n"))?;
    serve(
        lab.app(),
        app(9642),
        answering(
            "HTTP/1.1 502 \x1b[31mBad\r\nServer: \x1b[5m\u{202e}gnp\r\nContent-Length: 9\r\n\r\n\x1b[2Jgone\r"
                .as_bytes(),
        ),
    )?;
    let http = format!(
        "server {{ listen 8080; server_name \"\x1b[31mx\u{202e}\"; location \"/\x1b[2J\u{200b}\" {{ proxy_pass http://{}; }} \
         location /b {{ proxy_pass http://{}; }} location /c {{ proxy_pass \"http://unix:/tmp/\x1b[31m\u{202e}x\"; }} }}",
        app(9641),
        app(9642)
    );
    let nginx = Server::start(&lab, lab.proxy(), "front", &http, 8080)?;
    let pid = nginx.master().to_string();
    for form in ["text", "json"] {
        let printed = output(&["check", "--format", form, "--pid", &pid])?;
        ensure!(printed.status.code() == Some(1), "{} {}", printed.status, printed.stderr);
        let obeyed = |c: char| (c.is_control() && c != '\n') || matches!(c, '\u{202e}' | '\u{200b}');
        ensure!(!printed.stdout.contains(obeyed), "{:?}", printed.stdout);
        ensure!(!printed.stderr.contains(obeyed), "{:?}", printed.stderr);
        ensure!(printed.stdout.contains("x1b"), "it is shown: {}", printed.stdout);
    }
    let text = output(&["check", "--pid", &pid])?.stdout;
    ensure!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    Ok(())
}

/// An upstream that closes idle connections sooner than nginx does.
#[test]
fn idle_times_are_measured() -> Result<()> {
    let lab = Lab::new()?;
    let app = SocketAddr::from((lab.addresses().app, 9651));
    serve(lab.app(), app, |mut stream| {
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(
            stream.try_clone().unwrap_or_else(|_| unreachable!()),
        );
        std::thread::sleep(Duration::from_millis(700));
        let _ = std::io::Write::flush(&mut stream);
    })?;
    let http = format!(
        "upstream pool {{ server {app}; keepalive 4; keepalive_timeout 2s; }} server {{ listen 8080; location / {{ proxy_pass http://pool; \
         proxy_http_version 1.1; proxy_set_header Connection \"\"; }} }}"
    );
    let nginx = Server::start(&lab, lab.proxy(), "front", &http, 8080)?;
    let checked = Checked::of(nginx.master(), &["--measure-idle"])?;
    checked.expect(&[])?;
    let race = checked.findings.iter().find(|finding| finding["cause"] == "keepalive-race").context("the finding")?;
    ensure!(race["weight"] == "risk" && race["seen"].to_string().contains("as measured"), "{race:#}");
    Ok(())
}
