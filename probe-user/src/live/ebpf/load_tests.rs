//! Tests of the loader. Those that load programs need root: `cargo test -- --include-ignored`.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    time::{Duration, Instant},
};

use object::{Object as _, ObjectSymbol as _};
use probe_abi::{
    Endpoint, Header, Kind,
    endpoint::{FAMILY_INET, FAMILY_UNIX},
    process::{Watched, role},
    socket::{SocketEvent, StateChange, present, state},
    syscall::Connect,
};
use zerocopy::FromBytes as _;

use super::{super::Answers, *};

#[test]
fn the_object_holds_what_the_names_say() {
    let file = object::File::parse(OBJECT).expect("this test needs the kernel programs: build without AYA_BUILD_SKIP");
    let symbols: BTreeSet<&str> =
        file.symbols().filter(object::ObjectSymbol::is_global).filter_map(|symbol| symbol.name().ok()).collect();
    let maps = ["EVENTS", "PROCESSES", "UPSTREAMS", "PORTS", "LAYOUTS", "LOSSES", "COUNTERS", "ONLY_TROUBLE"];
    let globals = [names::global::OFFSETS, names::global::SETTINGS, names::global::RECORDS];
    for name in names::program::ALL.iter().chain(&maps).chain(&globals) {
        assert!(symbols.contains(name), "the object has no {name}");
    }
}

fn loopback(port: u16) -> Endpoint {
    let mut endpoint = Endpoint { family: FAMILY_INET, port: port.to_be_bytes(), address: [0; 16] };
    endpoint.address[..4].copy_from_slice(&Ipv4Addr::LOCALHOST.octets());
    endpoint
}

#[test]
#[ignore = "needs root"]
fn every_program_passes_the_verifier_alone() {
    // The verifier gives up at a million.
    const LIMIT: u32 = 200_000;
    let btf = Btf::running_kernel().unwrap();
    let mut facts = Facts::of(Some(&btf));
    facts.records = super::super::records::formats().unwrap();
    let aya_btf = aya::Btf::from_sys_fs().unwrap();
    let mut ebpf = load_object(&facts, 1 << 20, Some(&aya_btf)).unwrap();
    let done = with_tracefs(|| {
        let mut added = Vec::new();
        let all = HOOKS.iter().chain(FUNCTIONS).flat_map(|hook| hook.alternatives.iter().map(move |one| (hook, one)));
        for (hook, alternative) in all {
            let name = alternative.program;
            if let Way::Function(_) | Way::Answers(_) = alternative.way {
                program::<UProbe>(&mut ebpf, name).unwrap().load().unwrap();
                if let Way::Answers(sent) = alternative.way {
                    program::<RawTracePoint>(&mut ebpf, sent).unwrap().load().unwrap();
                }
            } else if let Way::Return(call) = alternative.way {
                // Not every kernel offers it: this one's answer has to be that, and no complaint about the program.
                let answer = program::<FExit>(&mut ebpf, name).unwrap().load(&function_of(call), &aya_btf);
                if let Err(ProgramError::LoadError { io_error, verifier_log }) = answer {
                    let why = verifier_log.to_string();
                    assert!(why.trim().is_empty() || why.contains("processed 0 insns"), "{name}: {io_error}: {why}");
                }
            } else if alternative.needs.unmet(&facts).is_none() {
                assert_eq!(start(&mut ebpf, &mut added, Some(&aya_btf), hook, alternative), Ok(()), "{name}");
            }
        }
    });
    assert_eq!(done, Ok(()));
    for (name, program) in ebpf.programs() {
        let info = match program.info() {
            Err(ProgramError::NotLoaded) if name.ends_with("_return") => continue,
            info => info.unwrap(),
        };
        let count = info.verified_instruction_count().unwrap_or(0);
        assert!(count < LIMIT, "{name}: {count} instructions");
    }
}

#[test]
#[ignore = "needs root"]
fn what_is_not_attached_says_why_and_what_that_costs() {
    for (hide_btf, depth) in [(false, Depth::Standard), (false, Depth::Light), (true, Depth::Standard)] {
        let kernel = Kernel::load(&LoadOptions { depth, hide_btf, ..LoadOptions::default() }).unwrap();
        assert_eq!(kernel.btf_problem().is_some(), hide_btf);
        let names: BTreeSet<&str> = kernel.attachments().iter().map(|attachment| attachment.name).collect();
        assert_eq!(names.len(), HOOKS.len());
        for attachment in kernel.attachments() {
            let on = attachment.state == State::On;
            assert_eq!((on, on), (attachment.why.is_empty(), attachment.lost.is_empty()), "{attachment:?}");
        }
        let state = |name: &str| kernel.attachments().iter().find(|one| one.name == name).unwrap().state;
        assert_eq!(state("inet_sock_set_state"), if hide_btf { State::Degraded } else { State::On });
        assert_eq!(state("sys_exit_connect"), if depth == Depth::Light { State::Off } else { State::On });
    }
}

#[test]
#[ignore = "needs root"]
fn the_depth_changes_while_the_programs_run() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let options = LoadOptions { depth: Depth::Light, reach: Depth::Standard, ..LoadOptions::default() };
    let mut kernel = Kernel::load(&options).unwrap();
    kernel.watch_upstream(loopback(port)).unwrap();
    let mut ring = kernel.take_ring().unwrap();
    for depth in [Depth::Light, Depth::Standard, Depth::Light, Depth::Standard] {
        kernel.set_depth(depth).unwrap();
        for attachment in kernel.attachments() {
            let (on, deeper) = (attachment.state == State::On, attachment.name.starts_with("sys_exit"));
            assert_eq!(on, !deeper || depth == Depth::Standard, "{depth:?}: {attachment:?}");
            assert_eq!((on, on), (attachment.why.is_empty(), attachment.lost.is_empty()), "{attachment:?}");
        }
        while ring.next(|_| ()).is_some() {}
        let _client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let _server = listener.accept().unwrap();
        let mut kinds = BTreeSet::new();
        while ring.next(|bytes| kinds.insert(Header::read_from_prefix(bytes).unwrap().0.kind)).is_some() {}
        let told = kinds.contains(&(Kind::StateChange as u16));
        assert_eq!(told, depth == Depth::Standard, "{depth:?}: {kinds:?}");
    }
}

#[test]
#[ignore = "needs root"]
fn a_reset_connection_is_told_from_both_sides() {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let mut kernel = Kernel::load(&LoadOptions { depth: Depth::Light, ..LoadOptions::default() }).unwrap();
    kernel.watch_upstream(loopback(port)).unwrap();
    assert_eq!(kernel.upstreams().unwrap(), [loopback(port)]);

    let mut client = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
    client.write_all(b"unread").unwrap();
    let (server, _) = listener.accept().unwrap();
    let mut byte = [0];
    server.peek(&mut byte).unwrap();
    // Closing with data unread makes the kernel send a RST.
    drop(server);
    assert_eq!(client.read(&mut byte).unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
    let here = loopback(client.local_addr().unwrap().port());

    let mut changes = Vec::new();
    let mut resets = Vec::new();
    let mut ring = kernel.take_ring().unwrap();
    let end = Instant::now() + Duration::from_secs(5);
    while resets.len() < 2 && Instant::now() < end {
        ring.next(|bytes| match Kind::from_number(Header::read_from_prefix(bytes).unwrap().0.kind) {
            Some(Kind::StateChange) => changes.push(StateChange::read_from_bytes(bytes).unwrap()),
            Some(Kind::ResetSent | Kind::ResetReceived) => resets.push(SocketEvent::read_from_bytes(bytes).unwrap()),
            _ => {}
        });
    }
    let client_end = changes.iter().find(|change| change.socket.local == here && change.socket.state == state::CLOSE);
    let socket = client_end.expect("the client's socket closed").socket;
    assert_eq!((socket.old_state, socket.error, socket.bytes_sent), (state::ESTABLISHED, 104, 6));
    assert_eq!(socket.present & (present::TUPLE | present::TCP), present::TUPLE | present::TCP);
    let server_end = changes.iter().find(|change| change.socket.remote == here && change.socket.state == state::CLOSE);
    let server_end = server_end.expect("the server's socket closed");
    assert_eq!((server_end.in_task, server_end.header.tgid), (1, std::process::id()));
    let received = resets.iter().find(|event| event.header.kind == Kind::ResetReceived as u16);
    assert_eq!(received.expect("the reset was received").socket.local, here);
    let sent = resets.iter().find(|event| event.header.kind == Kind::ResetSent as u16);
    let sent = sent.expect("the reset was sent");
    assert_eq!(sent.socket.remote, here);
    if kernel.settings().has_reset_reason != 0 {
        assert_eq!(kernel.reset_reason_name(sent.value), "TCP_ABORT_ON_CLOSE");
    }
    assert_eq!(kernel.losses().unwrap(), super::super::Losses::default());
}

/// `connect()` to a port nobody listens on, told by the call's own tracepoint and by the stand-in for all calls. (By its function's
/// return: `cargo xtask vm-test`.)
#[test]
#[ignore = "needs root"]
fn a_failed_connect_is_told_either_way() {
    let btf = Btf::running_kernel().unwrap();
    let connect = HOOKS.iter().find(|hook| hook.name == "sys_exit_connect").unwrap();
    for alternative in connect.alternatives.iter().filter(|alternative| !matches!(alternative.way, Way::Return(_))) {
        let mut facts = Facts::of(Some(&btf));
        // Not the test itself, which is what is watched here.
        facts.settings.own_tgid = 0;
        let mut ebpf = load_object(&facts, 1 << 20, None).unwrap();
        let started = with_tracefs(|| start(&mut ebpf, &mut Vec::new(), None, connect, alternative));
        assert_eq!(started, Ok(Ok(())), "{}", alternative.program);
        let watched = Watched { role: role::UPSTREAM, ..Watched::default() };
        let mut processes: aya::maps::HashMap<_, u32, Pod<Watched>> =
            ebpf.map_mut(names::map::PROCESSES).unwrap().try_into().unwrap();
        processes.insert(std::process::id(), Pod(watched), 0).unwrap();
        let mut ring = RingBuf::try_from(ebpf.take_map(names::map::EVENTS).unwrap()).unwrap();

        let free = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port();
        assert!(TcpStream::connect((Ipv4Addr::LOCALHOST, free)).is_err());
        let path = "/nonexistent/probe502";
        assert!(std::os::unix::net::UnixStream::connect(path).is_err());

        let mut connects = Vec::new();
        while let Some(item) = ring.next() {
            connects.extend(Connect::read_from_bytes(&item).ok());
        }
        let [tcp, unix] = connects.as_slice() else {
            panic!("{}: {} records", alternative.program, connects.len());
        };
        assert_eq!(
            (tcp.result, tcp.address, tcp.header.tgid),
            (-libc::ECONNREFUSED, loopback(free), std::process::id())
        );
        assert_eq!((unix.result, unix.address.family), (-libc::ENOENT, FAMILY_UNIX));
        assert_eq!(&unix.path[..path.len()], path.as_bytes());
    }
}

/// An nginx of Debian that does nothing.
fn idle_nginx(folder: &std::path::Path) -> std::process::Child {
    let file = folder.join("nginx.conf");
    std::fs::write(&file, "daemon off; master_process off; pid nginx.pid; error_log stderr; events {}").unwrap();
    std::process::Command::new("nginx")
        .arg("-p")
        .arg(folder)
        .arg("-c")
        .arg(&file)
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap()
}

#[test]
#[ignore = "needs root and nginx"]
fn only_answers_in_trouble_are_looked_at_where_that_is_enough() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = idle_nginx(folder.path());
    std::thread::sleep(Duration::from_millis(300));
    let mut kernel = Kernel::load(&LoadOptions::default()).unwrap();
    let way = |attached: &[Attachment]| {
        let of = |one: &&Attachment| one.name == "ngx_http_send_header";
        attached.iter().find(of).map(|one| (one.state, one.program))
    };
    let (quiet, dear) = ("ngx_http_upstream_test_next", "ngx_http_send_header");
    let every = Answers::Every("a cache".to_owned());
    for (answers, program) in [(Answers::Troubled, quiet), (every, dear), (Answers::Troubled, quiet)] {
        let reason = matches!(answers, Answers::Every(_)).then_some("a cache");
        let attached = kernel.attach_nginx(server.id(), answers).unwrap();
        assert_eq!(way(&attached), Some((State::On, program)));
        assert_eq!(kernel.sent.is_some(), program == quiet, "nobody pays for what nobody needs");
        assert_eq!(kernel.every_answer_of(server.id()), reason);
    }
    kernel.detach_nginx(server.id());
    assert!(kernel.sent.is_none());
    // Without the complaints nobody would know what to wait for.
    let only = Some(vec!["ngx_http_send_header".to_owned()]);
    let mut alone = Kernel::load(&LoadOptions { only, ..LoadOptions::default() }).unwrap();
    assert_eq!(way(&alone.attach_nginx(server.id(), Answers::Troubled).unwrap()), Some((State::On, dear)));
    server.kill().unwrap();
    server.wait().unwrap();
}

#[test]
#[ignore = "needs root and nginx"]
fn an_nginx_is_attached_to_once_and_let_go() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = idle_nginx(folder.path());
    let mut kernel = Kernel::load(&LoadOptions { depth: Depth::Light, ..LoadOptions::default() }).unwrap();
    // The child is this program until it has executed nginx.
    let mut attached = Vec::new();
    for _ in 0..50 {
        attached = kernel.attach_nginx(server.id(), Answers::Troubled).unwrap();
        if attached.iter().any(|attachment| attachment.state == State::On) {
            break;
        }
        kernel.detach_nginx(server.id());
        std::thread::sleep(Duration::from_millis(20));
    }
    let on = |attachments: &[Attachment]| attachments.iter().filter(|one| one.state == State::On).count();
    assert_eq!(on(&attached), FUNCTIONS.iter().filter(|hook| hook.depth == Depth::Light).count(), "{attached:?}");
    assert_eq!(kernel.attach_nginx(server.id(), Answers::Troubled).unwrap(), attached);
    assert_eq!(kernel.binaries.len(), 1);
    kernel.detach_nginx(server.id());
    assert_eq!(kernel.binaries.len(), 0);
    let again = kernel.attach_nginx(server.id(), Answers::Troubled).unwrap();
    assert_eq!(on(&again), on(&attached));
    server.kill().unwrap();
    server.wait().unwrap();
    assert!(matches!(
        kernel.attach_nginx(server.id(), Answers::Troubled),
        Err(super::super::NginxError::Process { .. })
    ));
}

#[test]
#[ignore = "needs root"]
fn a_program_that_is_no_nginx_has_nothing_to_attach_to() {
    let mut kernel = Kernel::load(&LoadOptions::default()).unwrap();
    for attachment in kernel.attach_nginx(std::process::id(), Answers::Troubled).unwrap() {
        assert_eq!(attachment.state, State::Off);
        assert!(attachment.why.contains("does not export"), "{attachment:?}");
    }
}

#[test]
fn the_tick_is_a_sane_number() {
    assert!((24..=1200).contains(&Kernel::hz()), "{}", Kernel::hz());
}

#[test]
fn reasons_without_a_name_are_shown_as_numbers() {
    let names = BTreeMap::from([(3, "NO_SOCKET".to_owned())]);
    assert_eq!(reason_name(&names, 3), "NO_SOCKET");
    assert_eq!(reason_name(&names, 0x3_0001), "reason 0x30001");
    assert_eq!(reason_name(&names, NO_REASON), "not given");
}

#[test]
fn a_kernel_without_a_ring_is_refused_in_one_sentence() {
    let failure = || EbpfError::UnexpectedPinningType { name: 7 };
    let text = refusal(failure(), Some(false)).to_string();
    assert!(text.contains("no BPF ring buffer") && text.contains("5.8") && !text.contains('\n'), "{text}");
    for known in [Some(true), None] {
        let text = refusal(failure(), known).to_string();
        assert!(text.contains("root") && !text.contains("ring buffer"), "{text}");
    }
}

#[test]
fn a_function_that_the_kernel_lacks_is_told_from_a_refusal() {
    let lockdown = "this kernel lets no program read its memory (lockdown=confidentiality)";
    for line in ["unknown func bpf_probe_read#4", "program of this type cannot use helper bpf_probe_read_kernel#113"] {
        assert_eq!(lacking_helper(line).as_deref(), Some(lockdown));
    }
    let old = lacking_helper("invalid func unknown#175").unwrap();
    assert!(old.contains("no function unknown#175"), "{old}");
    assert_eq!(lacking_helper("R1 invalid mem access 'scalar'"), None);
}
