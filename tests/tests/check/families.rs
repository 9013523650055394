//! The lab's own faults of the families `connect` and `protocol`, as far as they are there before a request: the check finds what the
//! watch would find.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use anyhow::{Result, ensure};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::site::Site;

use crate::scene::Checked;

fn check(expected: &BTreeMap<SocketAddr, &str>, site: &Site<'_>, others: &[&str]) -> Result<Checked> {
    let checked = Checked::of(site.nginx().master(), &["--probe-path", "/ok"])?;
    let found = checked.faults();
    for (address, cause) in expected {
        let said = found.get(&address.to_string()).map(String::as_str);
        ensure!(said == Some(*cause), "{address}: {said:?}, not {cause}\n{:#?}", checked.findings);
    }
    let unexpected: Vec<_> =
        found.iter().filter(|(subject, _)| !expected.keys().any(|address| address.to_string() == **subject)).collect();
    let is_known = |(subject, cause): &(&String, &String)| others.contains(&format!("{subject} {cause}").as_str());
    ensure!(unexpected.iter().all(is_known), "{unexpected:#?}\n{:#?}", checked.findings);
    Ok(checked)
}

#[test]
fn protocol_faults_are_found_before_a_request() -> Result<()> {
    let lab = Lab::new()?;
    let faults: Vec<Fault> =
        Fault::families().into_iter().filter(|(name, _)| *name == "protocol").flat_map(|(_, faults)| faults).collect();
    let site = Site::start(&lab, &faults)?;
    // The other faults are in the answer to one path, or to a request that runs a script: there is nothing to find before.
    let expected = [
        (9001, "tls-handshake-failed"),
        (9142, "fastcgi-error"),
        (9143, "fastcgi-error"),
        (9147, "fastcgi-error"),
        (9148, "fastcgi-error"),
        (9156, "grpc-error"),
        (9161, "tls-handshake-failed"),
        (9162, "tls-handshake-failed"),
        (9163, "tls-handshake-failed"),
        (9164, "tls-handshake-failed"),
        (9165, "tls-certificate-invalid"),
        (9166, "tls-certificate-invalid"),
    ];
    let checked = check(&expected.map(|(port, cause)| (site.app(port), cause)).into(), &site, &[])?;
    // Signed by itself and trusted by nobody here; that OpenSSL would not find another way is left open.
    let unknown = site.app(9167).to_string();
    let is_it =
        |finding: &&serde_json::Value| finding["subject"] == unknown && finding["cause"] == "tls-certificate-invalid";
    ensure!(checked.findings.iter().any(|finding| is_it(&finding)), "{:#?}", checked.findings);
    Ok(())
}

#[test]
fn packet_filters_are_found_before_a_request() -> Result<()> {
    let lab = Lab::new()?;
    let mut faults: Vec<Fault> =
        Fault::of_connect().into_iter().filter(|fault| fault.name.starts_with("firewall-") && !fault.alone).collect();
    faults.extend(Fault::named("upstream-refused-beside-a-rule"));
    let site = Site::start(&lab, &faults)?;
    for fault in &faults {
        // Their rules are made when they are brought about, and stay.
        site.provoke(fault)?;
    }
    let six = |port: u16| SocketAddr::from((lab.addresses().app6, port));
    let mut expected = BTreeMap::from([
        (site.app(9220), "firewall-rejected"),
        (site.app(9221), "upstream-refused"),
        (site.app(9222), "firewall-dropped"),
        (site.app(9223), "firewall-dropped"),
        (site.app(9224), "firewall-dropped"),
    ]);
    expected.extend((9200..=9206).chain(9212..=9214).map(|port| (site.app(port), "firewall-rejected")));
    expected.extend((9207..=9211).map(|port| (six(port), "firewall-rejected")));
    // Behind a router: who sent the RST cannot be seen from nginx's side.
    check(&expected, &site, &["198.51.100.3:9246 firewall-rejected", "198.51.100.4:9247 upstream-refused"])?;
    Ok(())
}
