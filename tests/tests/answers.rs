//! Which answers nginx is asked about: those of requests in trouble where each failure announces itself, else all of them.

use std::fs;

use anyhow::{Context, Result, ensure};
use probe_tests::expect::{Report, Witness};
use probe_tests::fault::Fault;
use probe_tests::lab::Lab;
use probe_tests::nginx::Nginx;
use probe_tests::probe::{Probe, output};
use probe_tests::site::Site;
use probe_tests::trial::WITHIN;

const TROUBLED: &str = "only answers of requests that have trouble pay for it";
const EVERY: &str = "every answer pays for it";

/// A complaint, an upstream's own status, a server after the failed one, a page after it, and the configuration's own: every way in which a
/// failure announces itself.
fn faults() -> Result<Vec<Fault>> {
    ["upstream-refused", "upstream-sent-502", "masked-502", "masked-fallback", "configured-502", "premature-close"]
        .into_iter()
        .map(Fault::named)
        .collect()
}

/// How the answers of this nginx are looked at, as `doctor` says.
fn way(nginx: &Nginx) -> Result<String> {
    let printed = output(&["doctor", "--json"])?;
    let name = format!("nginx {} uprobe ngx_http_send_header", nginx.master());
    let line = printed.stdout.lines().find(|line| line.contains(&name)).with_context(|| printed.stdout.clone())?;
    Ok(line.to_owned())
}

fn is(nginx: &Nginx, wanted: &str) -> Result<()> {
    let said = way(nginx)?;
    ensure!(said.contains(wanted) && said.contains(r#""state":"on""#), "{said}");
    Ok(())
}

fn provoke(site: &Site<'_>, faults: &[Fault], probe: &Probe) -> Result<()> {
    let mut witnesses: Vec<Witness> = Vec::new();
    for fault in faults {
        witnesses.extend(site.provoke(fault)?);
    }
    probe.check_all(&witnesses, WITHIN)?;
    Ok(())
}

/// Workers that are younger than their files for sure: the kernel tells when a process began in hundredths of a second, and a fast machine
/// starts an nginx within the one in which its configuration was written.
fn aged(nginx: &Nginx) -> Result<()> {
    std::thread::sleep(std::time::Duration::from_millis(20));
    nginx.reload()?;
    Ok(())
}

/// With the directive put at the beginning of `http`.
fn configure(nginx: &Nginx, directive: &str) -> Result<()> {
    let file = nginx.directory().join("nginx.conf");
    let text = fs::read_to_string(&file)?;
    fs::write(&file, text.replacen("http {", &format!("http {{ {directive}"), 1))?;
    Ok(())
}

/// A reload may bring a cache, subrequests, HTTP/2: then every answer is looked at, and no failure is missed on either side of it.
#[test]
fn a_reload_changes_which_answers_are_looked_at() -> Result<()> {
    let lab = Lab::new()?;
    let faults = faults()?;
    let site = Site::start(&lab, &faults)?;
    aged(site.nginx())?;
    is(site.nginx(), TROUBLED)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    provoke(&site, &faults, &probe)?;
    configure(site.nginx(), "ssi on;")?;
    is(site.nginx(), EVERY).context("the file is newer than the workers")?;
    site.nginx().reload()?;
    is(site.nginx(), EVERY)?;
    provoke(&site, &faults, &probe)?;
    let summary_of = probe.stop()?;
    let summary = summary_of.summary()?;
    ensure!(summary.events_lost == 0, "{summary:?}");
    Ok(())
}

/// A file that the workers have read is gone from a directory that is included: what they were told is not known any more.
#[test]
fn a_file_that_is_gone_is_missed() -> Result<()> {
    let lab = Lab::new()?;
    let faults = faults()?;
    let site = Site::start(&lab, &faults)?;
    let directory = site.nginx().directory().join("more.d");
    fs::create_dir(&directory)?;
    fs::write(directory.join("ssi.conf"), "ssi on;")?;
    configure(site.nginx(), &format!("include {}/*.conf;", directory.display()))?;
    site.nginx().reload()?;
    fs::remove_file(directory.join("ssi.conf"))?;
    is(site.nginx(), EVERY)?;
    aged(site.nginx())?;
    is(site.nginx(), TROUBLED)
}

/// nginx passes a 502 on, keeps its header back because there is not yet enough to send, and gives up: nothing is ever sent.
#[test]
fn an_answer_that_was_kept_back_is_told() -> Result<()> {
    let lab = Lab::new()?;
    let site = Site::start_with(&lab, "kept-back", &[], |plan| {
        let pass = format!("proxy_pass http://{}/bad-502/;", plan.app(9001));
        plan.config.location("/kept-back/", &[&pass, "proxy_http_version 1.1;"]);
    })?;
    aged(site.nginx())?;
    is(site.nginx(), TROUBLED)?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let nothing = site.connect()?.get("/kept-back/1");
    ensure!(nothing.as_ref().map_or(true, |exchange| exchange.status.is_none()), "{nothing:?}");
    let (_, incident, _) = probe.wait_incident(WITHIN, |report, _| report == Report::Incident)?;
    ensure!(incident.status == Some(502) && incident.verdict.cause == "upstream-sent-502", "{incident:#?}");
    probe.stop()?;
    Ok(())
}

/// Several requests of one client, one after the other on the same connection: each failure is its own request's.
#[test]
fn one_connection_after_failures_carries_answers_that_are_well() -> Result<()> {
    let lab = Lab::new()?;
    let fault = Fault::named("upstream-refused")?;
    let site = Site::start(&lab, &[fault])?;
    let probe = Probe::watch_nginx(site.nginx().master(), &[])?;
    let mut client = site.connect()?;
    let mut failed = 0;
    for turn in 0..30 {
        let uri = if turn % 3 == 0 { "/upstream-refused/1" } else { "/ok" };
        let exchange = client.get(uri)?;
        failed += u64::from(exchange.status == Some(502));
        ensure!((exchange.status == Some(502)) == (turn % 3 == 0), "{exchange:?}");
    }
    std::thread::sleep(WITHIN);
    let ended = probe.stop()?;
    let summary = ended.summary()?;
    ensure!((summary.incidents, summary.near_misses) == (failed, 0), "{failed} failed: {summary:?}");
    Ok(())
}
