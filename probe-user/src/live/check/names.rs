//! Names, resolved as nginx resolves them: by its own resolver over DNS, or as the system does, with nginx's own files.

use std::{
    io::{self, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, ToSocketAddrs as _, UdpSocket},
    path::Path,
    sync::{Arc, mpsc},
    thread,
    time::{Duration, Instant},
};

use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{Name, RData, RecordType},
    serialize::binary::{BinDecodable as _, BinEncodable as _},
};

use super::place::Place;
use crate::{
    check::{plan::Resolver, seen::NameFailure},
    live::nginx::Root,
};

/// For one name server, once. It is asked twice.
const PATIENCE: Duration = Duration::from_millis(1_500);
/// For the system's resolver, which has its own patience.
const SYSTEM_PATIENCE: Duration = Duration::from_secs(5);
/// The largest file of names read.
const LARGEST: usize = 4 << 20;
const DNS_PORT: u16 = 53;

type Addresses = Result<Vec<IpAddr>, NameFailure>;

/// Resolves a name; how long it took.
pub(super) fn resolve(place: &Arc<Place>, root: &Root, host: &str, resolver: &Resolver) -> (Addresses, Duration) {
    let began = Instant::now();
    let result = match resolver {
        Resolver::Missing => Err(NameFailure::NoResolver),
        Resolver::Nginx { servers, ipv4, ipv6 } => {
            let servers: Vec<SocketAddr> = servers.iter().filter_map(|text| name_server(text)).collect();
            let types: Vec<RecordType> = [(*ipv4, RecordType::A), (*ipv6, RecordType::AAAA)]
                .into_iter()
                .filter_map(|(on, kind)| on.then_some(kind))
                .collect();
            if servers.is_empty() {
                // nginx resolves the names of name servers itself, when it starts.
                Err(NameFailure::NotAsked("the resolver is given by name".to_owned()))
            } else {
                inside(place, || dns(&servers, host, &types))
            }
        }
        Resolver::System if place.same_files => system(place, host),
        Resolver::System => files(place, root, host),
    };
    (result, began.elapsed())
}

fn inside(place: &Place, work: impl FnOnce() -> Addresses + Send) -> Addresses {
    place.inside(false, work).unwrap_or_else(|error| Err(NameFailure::NotAsked(error.to_string())))
}

fn name_server(text: &str) -> Option<SocketAddr> {
    let bare = text.trim_matches(['[', ']']);
    text.parse().ok().or_else(|| bare.parse::<IpAddr>().ok().map(|ip| SocketAddr::new(ip, DNS_PORT)))
}

/// With the system's own library, which knows everything that is configured here.
fn system(place: &Arc<Place>, host: &str) -> Addresses {
    let (sender, receiver) = mpsc::channel();
    let (place, wanted) = (Arc::clone(place), host.to_owned());
    // Not joined: getaddrinfo cannot be interrupted, and the thread ends by itself.
    let started = thread::Builder::new().name("resolve".into()).spawn(move || {
        let answer = place.inside(false, || {
            (wanted.as_str(), 0).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect::<Vec<_>>())
        });
        let _ = sender.send(answer.and_then(|answer| answer));
    });
    if let Err(error) = started {
        return Err(NameFailure::NotAsked(error.to_string()));
    }
    match receiver.recv_timeout(SYSTEM_PATIENCE) {
        Err(_) => Err(NameFailure::Silent),
        Ok(Ok(mut found)) => {
            found.sort();
            found.dedup();
            if found.is_empty() { Err(NameFailure::NoAddress) } else { Ok(found) }
        }
        // std keeps the words of gai_strerror only.
        Ok(Err(error)) => Err(match error.to_string() {
            text if text.contains("Name or service not known") => NameFailure::NoSuchName,
            text if text.contains("No address associated") => NameFailure::NoAddress,
            text if text.contains("Temporary failure") => NameFailure::Silent,
            text => NameFailure::NotAsked(text),
        }),
    }
}

/// As the system's library would with nginx's own `/etc/hosts` and `/etc/resolv.conf`. The library itself is not used: in there it would
/// load what the container brings.
fn files(place: &Place, root: &Root, host: &str) -> Addresses {
    let read = |path: &str| root.read(Path::new(path), LARGEST).unwrap_or_default();
    let known = hosts(&read("/etc/hosts"), host);
    if !known.is_empty() {
        return Ok(known);
    }
    if host.eq_ignore_ascii_case("localhost") {
        return Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]);
    }
    let (servers, candidates) = resolv_conf(&read("/etc/resolv.conf"), host);
    let mut result = Err(NameFailure::NoSuchName);
    for name in candidates {
        result = inside(place, || dns(&servers, &name, &[RecordType::A, RecordType::AAAA]));
        if !matches!(result, Err(NameFailure::NoSuchName)) {
            break;
        }
    }
    result
}

fn hosts(text: &str, host: &str) -> Vec<IpAddr> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or(line));
    let mut found: Vec<IpAddr> = lines
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let ip = words.next()?.parse().ok()?;
            words.any(|name| name.eq_ignore_ascii_case(host)).then_some(ip)
        })
        .collect();
    found.sort();
    found.dedup();
    found
}

/// Name servers, and the names to ask for in order (resolv.conf(5)).
fn resolv_conf(text: &str, host: &str) -> (Vec<SocketAddr>, Vec<String>) {
    let mut servers = Vec::new();
    let mut search: Vec<String> = Vec::new();
    let mut dots = 1;
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => servers.extend(words.next().and_then(name_server)),
            Some("search" | "domain") => search = words.map(ToOwned::to_owned).collect(),
            Some("options") => {
                let option = words.find_map(|word| word.strip_prefix("ndots:")?.parse().ok());
                dots = option.unwrap_or(dots);
            }
            _ => {}
        }
    }
    if servers.is_empty() {
        servers.push(SocketAddr::from((Ipv4Addr::LOCALHOST, DNS_PORT)));
    }
    if host.ends_with('.') {
        return (servers, vec![host.to_owned()]);
    }
    let mut names: Vec<String> = search.iter().map(|domain| format!("{host}.{domain}")).collect();
    let place = if host.matches('.').count() >= dots { 0 } else { names.len() };
    names.insert(place, host.to_owned());
    (servers, names)
}

/// Asks the name servers, one after the other, for both families.
fn dns(servers: &[SocketAddr], host: &str, types: &[RecordType]) -> Addresses {
    let name = Name::from_utf8(host).map_err(|error| NameFailure::NotAsked(error.to_string()))?;
    let mut name = name;
    name.set_fqdn(true);
    let mut found = Vec::new();
    let mut failure = NameFailure::NoAddress;
    for (number, kind) in (0_u16..).zip(types) {
        // The number only tells the two answers apart; each comes to a socket of its own.
        match ask(servers, &name, *kind, 0x5502 + number) {
            Ok(addresses) => found.extend(addresses),
            Err(error) => failure = error,
        }
    }
    found.sort();
    found.dedup();
    if found.is_empty() { Err(failure) } else { Ok(found) }
}

fn ask(servers: &[SocketAddr], name: &Name, kind: RecordType, id: u16) -> Addresses {
    let mut query = Message::new();
    query.set_id(id).set_message_type(MessageType::Query).set_op_code(OpCode::Query).set_recursion_desired(true);
    query.add_query(Query::query(name.clone(), kind));
    let bytes = query.to_bytes().map_err(|error| NameFailure::NotAsked(error.to_string()))?;
    let mut failure = NameFailure::Silent;
    for server in servers.iter().chain(servers) {
        let Ok(answer) = udp(*server, &bytes, id) else { continue };
        let answer = if answer.truncated() { tcp(*server, &bytes).unwrap_or(answer) } else { answer };
        failure = match answer.response_code() {
            ResponseCode::NoError => {
                let addresses: Vec<IpAddr> = answer
                    .answers()
                    .iter()
                    .filter_map(|record| match record.data() {
                        RData::A(a) => Some(IpAddr::V4(a.0)),
                        RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                        _ => None,
                    })
                    .collect();
                return if addresses.is_empty() { Err(NameFailure::NoAddress) } else { Ok(addresses) };
            }
            ResponseCode::NXDomain => return Err(NameFailure::NoSuchName),
            code => NameFailure::Refused(code.to_str().to_owned()),
        };
    }
    Err(failure)
}

fn udp(server: SocketAddr, query: &[u8], id: u16) -> io::Result<Message> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0))?;
    socket.connect(server)?;
    socket.send(query)?;
    let deadline = Instant::now() + PATIENCE;
    let mut buffer = vec![0; 4_096];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        let length = socket.recv(&mut buffer)?;
        match Message::from_bytes(&buffer[..length]) {
            Ok(message) if message.id() == id && message.message_type() == MessageType::Response => return Ok(message),
            _ => {}
        }
    }
}

fn tcp(server: SocketAddr, query: &[u8]) -> io::Result<Message> {
    let mut stream = TcpStream::connect_timeout(&server, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = u16::try_from(query.len()).map_err(io::Error::other)?;
    stream.write_all(&[&length.to_be_bytes(), query].concat())?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
    stream.read_exact(&mut answer)?;
    Message::from_bytes(&answer).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_read_as_the_library_reads_them() {
        let text = "127.0.0.1 localhost\n10.0.0.7\tapp App.Example # the app\n::1 localhost\n# 10.0.0.8 app\n";
        assert_eq!(hosts(text, "app.example"), ["10.0.0.7".parse::<IpAddr>().unwrap()]);
        assert_eq!(hosts(text, "localhost").len(), 2);
        assert_eq!(hosts(text, "the"), Vec::<IpAddr>::new());
        let (servers, names) =
            resolv_conf("nameserver 127.0.0.11\nsearch a.example b.example\noptions ndots:2\n", "app.x");
        assert_eq!(servers, ["127.0.0.11:53".parse().unwrap()]);
        assert_eq!(names, ["app.x.a.example", "app.x.b.example", "app.x"]);
        assert_eq!(resolv_conf("", "app.x").1, ["app.x"]);
    }

    /// A name server for one question.
    fn server(code: ResponseCode, address: Option<Ipv4Addr>) -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let at = socket.local_addr().unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let mut message = Message::from_bytes(&buffer[..length]).unwrap();
                message.set_message_type(MessageType::Response).set_response_code(code);
                let query = message.queries()[0].clone();
                if let Some(address) = address.filter(|_| query.query_type() == RecordType::A) {
                    let record =
                        hickory_proto::rr::Record::from_rdata(query.name().clone(), 60, RData::A(address.into()));
                    message.add_answer(record);
                }
                socket.send_to(&message.to_bytes().unwrap(), from).unwrap();
            }
        });
        at
    }

    #[test]
    fn name_servers_are_understood() {
        let both = [RecordType::A, RecordType::AAAA];
        let found = dns(&[server(ResponseCode::NoError, Some(Ipv4Addr::new(10, 0, 0, 9)))], "app", &both);
        assert_eq!(found, Ok(vec![IpAddr::from([10, 0, 0, 9])]));
        assert_eq!(dns(&[server(ResponseCode::NXDomain, None)], "app", &both), Err(NameFailure::NoSuchName));
        assert_eq!(dns(&[server(ResponseCode::NoError, None)], "app", &both), Err(NameFailure::NoAddress));
        let refused = dns(&[server(ResponseCode::ServFail, None)], "app", &both);
        assert!(matches!(refused, Err(NameFailure::Refused(_))), "{refused:?}");
    }
}
