//! Interfaces and network namespaces that go away, and come back.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use probe_tests::lab::Lab;
use probe_tests::line::EvidenceSource;
use probe_tests::probe::Probe;
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

use crate::scene::{KINDS, all_is_well, check_summary, faults, humbler, notices};

/// Makes the pair of interfaces between proxy and app again, as the lab makes it.
fn plug_in(lab: &Lab) -> Result<()> {
    let made = Command::new("ip")
        .args(["link", "add", "app0", "netns", lab.app().name(), "type", "veth", "peer", "name", "proxy-a", "netns"])
        .arg(lab.proxy().name())
        .status()
        .context("run ip")?;
    ensure!(made.success(), "no interfaces: {made}");
    lab.app().ip_batch("addr add 10.77.2.2/24 dev app0\nlink set app0 up\n")?;
    lab.proxy().ip_batch("addr add 10.77.2.1/24 dev proxy-a\nlink set proxy-a up\n")
}

/// The interface towards the upstreams is pulled, and another of the same name takes its place: what is not seen meanwhile is said, nothing
/// is concluded from it, and packets are evidence again afterwards.
#[test]
fn interface_vanishes_and_comes_back() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let mut count = all_is_well(&site, &probe, 0)?;
    for round in 0..2 {
        lab.proxy().ip_batch("link del proxy-a\n")?;
        let told = probe.wait_notice(Duration::from_secs(2), |notice| notice.what == "capture-ended")?;
        ensure!(told.text.contains("proxy-a"), "{told:?}");
        // A host without a route to the upstream: nginx is told at once.
        let exchange = site.connect()?.get(&format!("/upstream-refused/gone-{round}"))?;
        ensure!(exchange.status == Some(502), "{exchange:?}");
        let (_, incident, _) = probe.wait_incident(Duration::from_secs(3), |_, incident| {
            incident.request.uri.as_deref() == Some(exchange.uri.as_str())
        })?;
        ensure!(["no-route", "unknown"].contains(&incident.verdict.cause.as_str()), "{incident:#?}");
        count += 1;
        plug_in(&lab)?;
        let back = probe.wait_notice(Duration::from_secs(3), {
            let mut seen = 0;
            move |notice| {
                seen += usize::from(notice.what == "capture-resumed" && notice.text.contains("proxy-a"));
                seen > round
            }
        })?;
        ensure!(back.text.contains("proxy-a"), "{back:?}");
        let witness = KINDS[1].provoke(&site, 100 + round)?;
        let incident = probe.check_all(&[witness], WITHIN)?.remove(0);
        let packets = incident.evidence.iter().any(|evidence| evidence.source == EvidenceSource::Packet);
        ensure!(packets, "packets are no evidence after the interface came back: {incident:#?}");
        count += 1;
        count += all_is_well(&site, &probe, 200 + 10 * round)?;
    }
    let ended = probe.stop()?;
    ensure!(notices(&ended, "capture-ended").len() == 2, "{:?}", notices(&ended, "capture-ended"));
    check_summary(&ended, count)
}

/// Down and up again, the same interface: nothing needs to be opened anew.
#[test]
fn interface_down_and_up() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let mut count = all_is_well(&site, &probe, 0)?;
    lab.proxy().ip_batch("link set proxy-a down\n")?;
    std::thread::sleep(Duration::from_millis(400));
    lab.proxy().ip_batch("link set proxy-a up\n")?;
    // The capture may have been opened anew; until then the probe knows that it does not see.
    let mut first = [KINDS[1].provoke(&site, 100)?];
    humbler(&mut first);
    probe.check_all(&first, WITHIN)?;
    std::thread::sleep(Duration::from_secs(1));
    count += 1 + all_is_well(&site, &probe, 101)?;
    let witness = KINDS[1].provoke(&site, 110)?;
    let incident = probe.check_all(&[witness], WITHIN)?.remove(0);
    let packets = incident.evidence.iter().any(|evidence| evidence.source == EvidenceSource::Packet);
    ensure!(packets, "packets are no evidence after the interface came back: {incident:#?}");
    count += 1;
    check_summary(&probe.stop()?, count)
}

/// One nginx goes with its network namespace; the probe lets go of it, and the other nginx is watched on.
#[test]
fn network_namespace_deleted() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start(&lab, &faults()?)?;
    let other_lab = Lab::new()?;
    let other = Site::start(&other_lab, &faults()?)?;
    let pids = [site.nginx().master().to_string(), other.nginx().master().to_string()];
    let probe = Probe::watch(["--pid", &pids[0], "--pid", &pids[1]])?;
    let there = all_is_well(&other, &probe, 0)?;
    let inode = std::fs::read_link(format!("/proc/{}/ns/net", other.nginx().master()))?;
    drop(other);
    drop(other_lab);
    probe
        .wait_notice(Duration::from_secs(3), |notice| notice.what == "nginx-gone" && notice.text.contains(&pids[1]))?;
    // A descriptor or a thread of the probe would keep it, and with it the interfaces.
    let mut held = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{}/fd", probe.pid()))? {
        held.extend(std::fs::read_link(entry?.path()).ok().filter(|target| *target == inode));
    }
    for task in std::fs::read_dir(format!("/proc/{}/task", probe.pid()))? {
        held.extend(std::fs::read_link(task?.path().join("ns/net")).ok().filter(|target| *target == inode));
    }
    ensure!(held.is_empty(), "the probe holds the namespace {}", inode.display());
    let here = all_is_well(&site, &probe, there)?;
    check_summary(&probe.stop()?, there + here)
}
