//! Rules of iptables, in the kernel's new form and in its old one.

use std::net::SocketAddr;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use probe_tests::lab::Lab;
use probe_tests::namespace::Namespace;
use probe_tests::process::{Process, Start};

use crate::scene::{Checked, OK, Server, answering, serve};

/// Runs one of iptables' programs in a namespace; what it says where it fails.
fn iptables(namespace: &Namespace, program: &str, words: &str) -> Result<Result<(), String>> {
    let output = namespace.inside(|| {
        let run = Command::new(program).args(words.split(' ')).stdin(Stdio::null()).output();
        run.with_context(|| format!("{program}: Debian's package iptables has it"))
    })?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    Ok(if output.status.success() { Ok(()) } else { Err(said) })
}

#[test]
fn rules_of_iptables_are_read() -> Result<()> {
    let lab = Lab::new()?;
    let addresses = *lab.addresses();
    let app = |port: u16| SocketAddr::from((addresses.app, port));
    let app6 = |port: u16| SocketAddr::from((addresses.app6, port));
    for port in 9711..=9715 {
        serve(lab.app(), app(port), answering(OK))?;
    }
    serve(lab.app(), app6(9716), answering(OK))?;
    let mut command = Command::new("sleep");
    command.arg("600").stdin(Stdio::null()).stdout(Stdio::null());
    // Somebody has to be there, or the host has no way into the namespace.
    let _resident = Process::spawn("sleep", command, Start { namespace: Some(lab.app()), ..Start::default() })?;
    let rules = [
        ("iptables-nft", lab.app(), "-N GUARD"),
        ("iptables-nft", lab.app(), "-A INPUT ! -s 192.0.2.0/24 -j GUARD"),
        (
            "iptables-nft",
            lab.app(),
            "-A GUARD -p tcp -m multiport --dports 9711,9790:9799 -m comment --comment guarded -j DROP",
        ),
        (
            "iptables-nft",
            lab.app(),
            "-A GUARD -p tcp --dport 9712 -m conntrack --ctstate NEW -j REJECT --reject-with tcp-reset",
        ),
        ("iptables-nft", lab.proxy(), "-A OUTPUT -p tcp --dport 9713 -j REJECT --reject-with tcp-reset"),
        ("ip6tables-nft", lab.app(), "-A INPUT -p tcp --dport 9716 --syn -j DROP"),
    ];
    for (program, namespace, words) in rules {
        if let Err(said) = iptables(namespace, program, words)? {
            anyhow::bail!("{program} {words}: {said}");
        }
    }
    let mut expected = vec![
        (app(9711).to_string(), "firewall-dropped"),
        (app(9712).to_string(), "firewall-rejected"),
        (app(9713).to_string(), "firewall-rejected"),
        (app6(9716).to_string(), "firewall-dropped"),
    ];
    // The old tables, where the kernel has them.
    let old = [
        (9714, "-A INPUT -p tcp --dport 9714 -j DROP", "firewall-dropped"),
        (9715, "-A INPUT -p tcp --dport 9715 -j REJECT", "firewall-rejected"),
    ];
    for (port, words, cause) in old {
        match iptables(lab.app(), "iptables-legacy", words)? {
            Ok(()) => expected.push((app(port).to_string(), cause)),
            Err(said) => {
                ensure!(said.contains("Table does not exist") || said.contains("can't initialize"), "{words}: {said}");
                println!("this kernel has no tables of the old kind: {said}");
            }
        }
    }
    let locations = expected
        .iter()
        .enumerate()
        .map(|(number, (address, _))| format!("location /{number} {{ proxy_pass http://{address}; }}\n"))
        .collect::<Vec<_>>()
        .concat();
    let nginx = Server::start(&lab, lab.proxy(), "front", &format!("server {{ listen 8080;\n{locations} }}"), 8080)?;
    let checked = Checked::of(nginx.master(), &[])?;
    checked.expect(&expected)?;
    ensure!(checked.summary["left_out"].as_array().is_some_and(Vec::is_empty), "{}", checked.summary);
    for (address, place) in [(app(9711), "upstream runs"), (app(9712), "upstream runs"), (app(9713), "nginx runs")] {
        let finding = checked.findings.iter().find(|finding| finding["subject"] == address.to_string());
        let seen = finding.context("the finding")?["seen"].to_string();
        let rule = format!(
            "packet filter where {}{place}, met by this connection: ip filter ",
            if place == "nginx runs" { "" } else { "the " }
        );
        ensure!(seen.contains(&rule) && seen.contains(&address.port().to_string()), "{seen}");
    }
    Ok(())
}
