//! What stands between nginx and a connection.

use std::fs;
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::socket::{AddressFamily, Backlog, SockFlag, SockType, SockaddrStorage, UnixAddr, bind, listen, socket};
use probe_tests::lab::Lab;
use probe_tests::process::{Process, Start};

use crate::scene::{Checked, OK, Server, answering, serve};

#[test]
fn every_way_a_connection_fails_is_found() -> Result<()> {
    let lab = Lab::new()?;
    let addresses = *lab.addresses();
    let app = |port: u16| SocketAddr::from((addresses.app, port));
    let [silent, _] = addresses.silent.context("an address that swallows packets")?;
    for port in [9702, 9703, 9704] {
        serve(lab.app(), app(port), answering(OK))?;
    }
    lab.app().nft(
        "table inet lab { chain input { type filter hook input priority 0; \
         tcp dport 9702 reject with tcp reset; tcp dport 9703 reject with icmpx type admin-prohibited; tcp dport 9704 drop; }; };\n",
    )?;
    // Somebody has to be there, or the host has no way into the namespace.
    let _resident = lab_resident(&lab)?;
    lab.proxy().ip_batch("route add prohibit 10.78.1.1/32\nroute add unreachable 10.78.1.2/32\n")?;
    // One connection waits beyond the limit of nought; the next SYN is dropped.
    let (_full, _waiting) = lab.app().inside(|| {
        let full = socket(AddressFamily::Inet, SockType::Stream, SockFlag::empty(), None)?;
        bind(std::os::fd::AsRawFd::as_raw_fd(&full), &SockaddrStorage::from(app(9705)))?;
        listen(&full, Backlog::new(0)?)?;
        let waiting = TcpStream::connect(app(9705))?;
        Ok((full, waiting))
    })?;
    let http = format!(
        "server {{ listen 8080;\n\
         location /a {{ proxy_pass http://{0}:9701; }} location /b {{ proxy_pass http://{0}:9702; }}\n\
         location /c {{ proxy_pass http://{0}:9703; }} location /d {{ proxy_pass http://{0}:9704; }}\n\
         location /e {{ proxy_pass http://{0}:9705; }} location /f {{ proxy_pass http://{silent}:80; }}\n\
         location /g {{ proxy_pass http://10.99.0.1; }} location /h {{ proxy_pass http://10.78.1.1; }}\n\
         location /i {{ proxy_pass http://10.78.1.2; }} location /j {{ proxy_pass http://10.77.2.77; }}\n\
         location /k {{ proxy_pass http://[{1}]:9701; }} }}",
        addresses.app, addresses.app6
    );
    let nginx = Server::start(&lab, lab.proxy(), "front", &http, 8080)?;
    let checked = Checked::of(nginx.master(), &[])?;
    let expected = [
        (app(9701).to_string(), "upstream-refused"),
        (app(9702).to_string(), "firewall-rejected"),
        (app(9703).to_string(), "firewall-rejected"),
        (app(9704).to_string(), "firewall-dropped"),
        (app(9705).to_string(), "accept-queue-overflow"),
        (format!("{silent}:80"), "syn-timeout"),
        ("10.99.0.1:80".to_owned(), "no-route"),
        ("10.78.1.1:80".to_owned(), "connect-denied"),
        ("10.78.1.2:80".to_owned(), "no-route"),
        ("10.77.2.77:80".to_owned(), "host-unreachable"),
        (format!("[{}]:9701", addresses.app6), "upstream-refused"),
    ];
    checked.expect(&expected)
}

/// A process in the upstreams' namespace.
fn lab_resident(lab: &Lab) -> Result<Process> {
    let mut command = Command::new("sleep");
    command.arg("600").stdin(Stdio::null()).stdout(Stdio::null());
    Process::spawn("sleep", command, Start { namespace: Some(lab.app()), ..Start::default() })
}

#[test]
fn unix_sockets_are_tried_as_the_worker() -> Result<()> {
    let lab = Lab::new()?;
    let directory = lab.subdirectory("sockets")?;
    let path = |name: &str| directory.join(name);
    drop(UnixListener::bind(path("stale"))?);
    let _denied = UnixListener::bind(path("denied"))?;
    fs::set_permissions(path("denied"), fs::Permissions::from_mode(0o600))?;
    fs::create_dir(path("closed"))?;
    let _hidden = UnixListener::bind(path("closed/hidden"))?;
    fs::set_permissions(path("closed/hidden"), fs::Permissions::from_mode(0o666))?;
    fs::set_permissions(path("closed"), fs::Permissions::from_mode(0o700))?;
    let full = socket(AddressFamily::Unix, SockType::Stream, SockFlag::empty(), None)?;
    bind(std::os::fd::AsRawFd::as_raw_fd(&full), &UnixAddr::new(&path("full"))?)?;
    listen(&full, Backlog::new(0)?)?;
    let _waiting = UnixStream::connect(path("full"))?;
    for name in ["stale", "full"] {
        fs::set_permissions(path(name), fs::Permissions::from_mode(0o666))?;
    }
    let locations = ["missing", "stale", "denied", "closed/hidden", "full"]
        .iter()
        .map(|name| format!("location /{name} {{ proxy_pass http://unix:{}; }}\n", path(name).display()))
        .collect::<Vec<_>>()
        .concat();
    let http = format!("server {{ listen 8080;\n{locations} }}");
    let nginx = Server::start_as(&lab, lab.proxy(), "front", "user nobody nogroup;", &http, 8080, &[])?;
    let checked = Checked::of(nginx.master(), &[])?;
    let subject = |name: &str| format!("unix:{}", path(name).display());
    checked.expect(&[
        (subject("missing"), "unix-socket-missing"),
        (subject("stale"), "unix-socket-refused"),
        (subject("denied"), "unix-socket-denied"),
        (subject("closed/hidden"), "unix-socket-denied"),
        (subject("full"), "unix-backlog-full"),
    ])?;
    let hidden = checked.findings.iter().find(|finding| finding["subject"] == subject("closed/hidden"));
    let seen = hidden.context("the finding")?["seen"].to_string();
    ensure!(seen.contains("closed (mode 700"), "{seen}");
    Ok(())
}

/// A name server in a namespace that answers every question with this code.
fn name_server(lab: &Lab, address: SocketAddr, code: u8) -> Result<()> {
    let socket = lab.app().inside(|| Ok(UdpSocket::bind(address)?))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            buffer[2] = 0x81;
            buffer[3] = 0x80 | code;
            let _ = socket.send_to(&buffer[..length], from);
        }
    });
    Ok(())
}

#[test]
fn names_without_an_address_are_found() -> Result<()> {
    let lab = Lab::new()?;
    let app = |port: u16| SocketAddr::from((lab.addresses().app, port));
    name_server(&lab, app(9801), 3)?;
    name_server(&lab, app(9802), 2)?;
    let location = |name: &str, resolver: &str| {
        format!("location /{name} {{ {resolver} set $up {name}.lab; proxy_pass http://$up:80; }}\n")
    };
    let resolver = |port: u16| format!("resolver {};", app(port));
    let http = format!(
        "server {{ listen 8080;\n{}{}{}{} }}",
        location("unknown", &resolver(9801)),
        location("broken", &resolver(9802)),
        location("silent", &resolver(9803)),
        location("nobody", "")
    );
    let nginx = Server::start(&lab, lab.proxy(), "front", &http, 8080)?;
    let checked = Checked::of(nginx.master(), &[])?;
    let names = ["unknown.lab", "broken.lab", "silent.lab", "nobody.lab"];
    checked.expect(&names.map(|name| (name.to_owned(), "dns-failure")))
}

/// The name has moved since nginx started.
#[test]
fn an_address_that_was_left_is_found() -> Result<()> {
    let lab = Lab::new()?;
    let old = SocketAddr::from((lab.addresses().app, 9821));
    serve(lab.app(), old, |stream| {
        answering(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")(stream.try_clone().unwrap_or(stream));
        std::thread::sleep(Duration::from_secs(1));
    })?;
    lab.app().ip_batch("addr add 10.77.2.3/24 dev app0\n")?;
    let new: SocketAddr = "10.77.2.3:9821".parse()?;
    serve(lab.app(), new, answering(OK))?;
    let hosts = lab.directory().join("hosts");
    fs::write(&hosts, format!("{} app.compose\n", old.ip()))?;
    let http = "server { listen 8080; location / { proxy_pass http://app.compose:9821; } }";
    let mount = format!("mount --bind {} /etc/hosts && exec \"$@\"", hosts.display());
    let through = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", &mount, "sh"];
    let nginx = Server::start_as(&lab, lab.proxy(), "contained", "user nobody nogroup;", http, 8080, &through)?;
    fs::write(&hosts, format!("{} app.compose\n", new.ip()))?;
    lab.app().nft("table inet lab { chain input { type filter hook input priority 0; ip daddr 10.77.2.2 tcp dport 9821 reject with tcp reset; }; };\n")?;
    let target = SocketAddr::from((lab.addresses().proxy, 8080));
    let status = probe_tests::client::Connection::open(lab.client(), target)?.get("/")?.status;
    ensure!(status == Some(502), "{status:?}");
    let checked = Checked::of(nginx.master(), &[])?;
    let stale = checked.findings.iter().find(|finding| finding["title"].to_string().contains("nginx uses"));
    ensure!(stale.is_some_and(|finding| finding["weight"] == "fault"), "{:#?}", checked.findings);
    Ok(())
}
