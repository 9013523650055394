//! Prints the kernel side's records as they come: `ring [--light] [--hide-btf] [--seconds N] [--quiet] MASTER_PID [ADDRESS:PORT…]`.
//! Needs root. For looking at the kernel side alone; `probe502 watch` is the program.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "printing is all it does")]

use std::{collections::BTreeMap, fs, net::SocketAddr, process::Command, time::Duration};

use anyhow::{Context as _, Result};
use probe_abi::{
    Endpoint, Header, Kind, nginx, process,
    process::{Watched, role},
    socket, syscall,
};
use probe502::live::ebpf::{Answers, Depth, Kernel, LoadOptions, calibrate::calibrate, layout::Build, symbols::Binary};
use zerocopy::FromBytes;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| arguments.iter().any(|argument| argument == name);
    let seconds: u64 = arguments
        .iter()
        .position(|argument| argument == "--seconds")
        .and_then(|at| arguments.get(at + 1))
        .map_or(Ok(5), |text| text.parse())?;
    let options = LoadOptions {
        depth: if flag("--light") { Depth::Light } else { Depth::Standard },
        hide_btf: flag("--hide-btf"),
        ..LoadOptions::default()
    };
    let mut kernel = Kernel::load(&options)?;
    for attachment in kernel.attachments() {
        eprintln!("{:28} {:?} {} {}", attachment.name, attachment.state, attachment.why, attachment.lost);
    }
    if flag("--verifier") {
        for (name, count) in kernel.verified_instructions() {
            eprintln!("{count:8} {name}");
        }
    }
    let mut skip = false;
    for argument in &arguments {
        if skip || argument.starts_with("--") {
            skip = argument == "--seconds";
        } else if let Ok(master) = argument.parse::<u32>() {
            watch(&mut kernel, master)?;
        } else {
            kernel
                .watch_upstream(endpoint(argument.parse().with_context(|| format!("not an address: {argument}"))?))?;
        }
    }
    eprintln!("HZ {} upstreams {:?} missing {:?} ready", Kernel::hz(), kernel.upstreams()?, kernel.missing_members());
    let mut counts: BTreeMap<Kind, u64> = BTreeMap::new();
    let mut sequences: BTreeMap<u16, u64> = BTreeMap::new();
    let mut gaps = 0;
    let ring = kernel.take_ring()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let mut ring = ring.into_async()?;
        let end = tokio::time::Instant::now() + Duration::from_secs(seconds);
        while tokio::time::Instant::now() < end {
            ring.read(1024, |bytes| {
                let Ok((header, _)) = Header::read_from_prefix(bytes) else { return println!("short record") };
                let last = sequences.insert(header.cpu, header.sequence).unwrap_or(header.sequence - 1);
                if header.sequence > last + 1 {
                    gaps += header.sequence - last - 1;
                }
                let Some(kind) = Kind::from_number(header.kind) else {
                    return println!("unknown kind {}", header.kind);
                };
                *counts.entry(kind).or_default() += 1;
                if !flag("--quiet") {
                    print(&kernel, kind, &header, bytes);
                }
            })
            .await?;
        }
        anyhow::Ok(())
    })?;
    eprintln!("{counts:?} gaps {gaps}");
    eprintln!("{:?} {:?}", kernel.losses()?, kernel.counters()?);
    eprintln!("watched {:?}", kernel.watched()?);
    eprintln!("upstreams {:?}", kernel.upstreams()?);
    Ok(())
}

fn watch(kernel: &mut Kernel, master: u32) -> Result<()> {
    let output = Command::new(format!("/proc/{master}/exe")).arg("-V").output()?;
    let mut build = Build::parse(&String::from_utf8_lossy(&output.stderr))?;
    eprintln!("{:?} {:?}", build.version, calibrate(&mut build.layout, &Binary::of_process(master)?));
    let index = kernel.add_layout(&build.layout)?;
    for attachment in kernel.attach_nginx(master, Answers::Every("an example".to_owned()))? {
        eprintln!("{:36} {:?} {} {}", attachment.name, attachment.state, attachment.why, attachment.lost);
    }
    kernel.watch_process(master, Watched { role: role::NGINX_MASTER, layout: index, master, reserved: 0 })?;
    let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
    for child in children.split_whitespace() {
        let child = child.parse()?;
        kernel.watch_process(child, Watched { role: role::NGINX_WORKER, layout: index, master, reserved: 0 })?;
    }
    Ok(())
}

fn endpoint(address: SocketAddr) -> Endpoint {
    let mut endpoint = Endpoint { port: address.port().to_be_bytes(), ..Endpoint::UNKNOWN };
    match address {
        SocketAddr::V4(address) => {
            endpoint.family = 2;
            endpoint.address[..4].copy_from_slice(&address.ip().octets());
        }
        SocketAddr::V6(address) => {
            endpoint.family = 10;
            endpoint.address = address.ip().octets();
        }
    }
    endpoint
}

fn show(endpoint: &Endpoint) -> String {
    let address = &endpoint.address;
    match endpoint.family {
        2 => format!("{}.{}.{}.{}:{}", address[0], address[1], address[2], address[3], endpoint.port()),
        10 => format!("[{}]:{}", std::net::Ipv6Addr::from(*address), endpoint.port()),
        1 => "unix".to_owned(),
        _ => format!("?:{}", endpoint.port()),
    }
}

fn show_socket(socket: &socket::Socket) -> String {
    format!(
        "{} > {} st {}<-{} err {}/{} shut {} sent {} acked {} recv {} unread {} unacked {} rtx {} queue {}/{} netns {} present {} last_rx {} last_tx {} srtt {}",
        show(&socket.local),
        show(&socket.remote),
        socket.state,
        socket.old_state,
        socket.error,
        socket.soft_error,
        socket.shutdown,
        socket.bytes_sent,
        socket.bytes_acked,
        socket.bytes_received,
        socket.rcv_nxt.wrapping_sub(socket.copied_seq),
        socket.write_seq.wrapping_sub(socket.snd_una),
        socket.total_retransmits,
        socket.accept_queue,
        socket.accept_queue_limit,
        socket.netns,
        socket.present,
        socket.last_received_jiffies,
        socket.last_sent_jiffies,
        socket.srtt_us_8 / 8,
    )
}

fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[expect(clippy::too_many_lines, reason = "one arm per kind of record")]
fn print(kernel: &Kernel, kind: Kind, header: &Header, bytes: &[u8]) {
    let line = match kind {
        Kind::StateChange => read(bytes, |record: &socket::StateChange| {
            format!("{} in_task {} jiffies {}", show_socket(&record.socket), record.in_task, record.jiffies)
        }),
        Kind::ResetSent => read(bytes, |record: &socket::SocketEvent| {
            format!(
                "{} reason {} packet {} {} > {} flags {:#x}",
                show_socket(&record.socket),
                kernel.reset_reason_name(record.value),
                record.has_packet,
                show(&record.packet.source),
                show(&record.packet.destination),
                record.packet.flags
            )
        }),
        Kind::ResetReceived | Kind::Retransmit | Kind::ErrorReport | Kind::SynAckRetransmit => {
            read(bytes, |record: &socket::SocketEvent| {
                format!(
                    "{} value {} {} > {}",
                    show_socket(&record.socket),
                    record.value,
                    show(&record.packet.source),
                    show(&record.packet.destination)
                )
            })
        }
        Kind::Drop => read(bytes, |record: &socket::Drop| {
            format!(
                "{} {} > {} flags {:#x} seq {} ack {} len {} ttl {} netns {}",
                kernel.drop_reason_name(record.reason),
                show(&record.packet.source),
                show(&record.packet.destination),
                record.packet.flags,
                record.packet.sequence,
                record.packet.acknowledgement,
                record.packet.length,
                record.packet.ttl,
                record.netns
            )
        }),
        Kind::Connect => read(bytes, |record: &syscall::Connect| {
            format!(
                "fd {} = {} {} {:?} | {}",
                record.fd,
                record.result,
                show(&record.address),
                text(&record.path),
                show_socket(&record.socket)
            )
        }),
        Kind::Accept => read(bytes, |record: &syscall::Accept| {
            format!(
                "fd {} = {} by {} | {}",
                record.fd,
                record.result,
                text(&record.command),
                show_socket(&record.socket)
            )
        }),
        Kind::OpenCall => read(bytes, |record: &syscall::OpenCall| format!("open = {}", record.result)),
        Kind::SocketCall => {
            read(bytes, |record: &syscall::SocketCall| format!("family {} = {}", record.family, record.result))
        }
        Kind::Fork => read(bytes, |record: &process::Fork| {
            format!("child {} role {} of {}", record.child, record.role, text(&record.command))
        }),
        Kind::Exec => {
            read(bytes, |record: &process::Exec| format!("role {} now {}", record.role, text(&record.command)))
        }
        Kind::Exit => read(bytes, |record: &process::Exit| {
            format!("code {:#x} role {} {}", record.code, record.role, text(&record.command))
        }),
        Kind::Signal => read(bytes, |record: &process::Signal| {
            format!(
                "{} to {} code {} kernel {} from {} role {}",
                record.signal,
                record.target,
                record.code,
                record.from_kernel,
                text(&record.command),
                record.role
            )
        }),
        Kind::OomVictim => read(bytes, |record: &process::OomVictim| format!("{} role {}", record.victim, record.role)),
        Kind::Held => {
            read(bytes, |record: &process::Held| format!("{} role {} all {}", record.count, record.role, record.all))
        }
        Kind::NginxLog => read(bytes, |record: &nginx::Log| {
            format!(
                "*{} req {:#x} main {:#x} creq {} ureq {} level {} errno {} found {:#x} ufd {} cfd {} client {} sock {} peer {:?}/{} fmt {:?} action {:?} | {}",
                record.number,
                record.request,
                record.main_request,
                record.client_requests,
                record.upstream_requests,
                record.level,
                record.errno,
                record.found,
                record.upstream_fd,
                record.client_fd,
                show(&record.client),
                show(&record.client_socket),
                text(&record.peer),
                record.peer_length,
                text(&record.format),
                text(&record.action),
                show_socket(&record.socket)
            )
        }),
        Kind::NginxSpecialResponse | Kind::NginxSendHeader | Kind::NginxRedirect => {
            read(bytes, |record: &nginx::Status| {
                format!(
                    "*{} req {:#x} main {:#x} creq {} status {} err {} found {:#x} cfd {} attempts {} client {} sock {} {:?}/{} host {:?}/{}",
                    record.number,
                    record.request,
                    record.main_request,
                    record.client_requests,
                    record.status,
                    record.err_status,
                    record.found,
                    record.client_fd,
                    record.attempts,
                    show(&record.client),
                    show(&record.client_socket),
                    text(&record.request_line),
                    record.request_line_length,
                    text(&record.host),
                    record.host_length
                )
            })
        }
        Kind::NginxAttempt => read(bytes, |record: &nginx::Attempt| {
            let time = |value: u64| if value == u64::MAX { "-".to_owned() } else { value.to_string() };
            format!(
                "req {:#x} {}/{} status {} response {} connect {} header {} in {} out {} peer {:?}/{}",
                record.request,
                record.index,
                record.total,
                record.status,
                time(record.response_time_ms),
                time(record.connect_time_ms),
                time(record.header_time_ms),
                record.bytes_received,
                record.bytes_sent,
                text(&record.peer),
                record.peer_length
            )
        }),
        Kind::NginxConnection => read(bytes, |record: &nginx::Connection| {
            format!("*{} req {:#x} fd {}", record.number, record.request, record.fd)
        }),
    };
    println!(
        "{:.6} cpu {} #{} tgid {} {kind:?} {}",
        Duration::from_nanos(header.time_ns).as_secs_f64(),
        header.cpu,
        header.sequence,
        header.tgid,
        line.unwrap_or_else(|| format!("wrong length {}", bytes.len()))
    );
}

fn read<T: FromBytes>(bytes: &[u8], show: impl FnOnce(&T) -> String) -> Option<String> {
    T::read_from_bytes(bytes).ok().map(|record| show(&record))
}
