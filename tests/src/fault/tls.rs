//! TLS towards the upstream: handshakes that fail, certificates that are not accepted, and ends that TLS hides.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::Signal;

use super::Fault;
use crate::expect::{AttemptExpectation as Attempt, Expectation, Witness};
use crate::line::Outcome;
use crate::namespace::run;
use crate::process::send;
use crate::site::{Plan, Site};
use crate::upstream::{Kind, Plan as UpstreamPlan};

/// The faults of this file.
pub(super) const FAULTS: &[Fault] = &[
    Fault::new("tls-handshake-failed-plain", "https:// to a port that speaks plain HTTP", plain, ask_plain),
    Fault::new("tls-handshake-failed-silent", "the port takes the handshake and says nothing", silent, ask_silent),
    Fault::new(
        "tls-handshake-failed-version",
        "the upstream wants TLS 1.3, nginx offers 1.2: alert 70",
        version,
        ask_version,
    ),
    Fault::new(
        "tls-handshake-failed-name",
        "the upstream does not know the name it is asked for: alert 112",
        name,
        ask_name,
    ),
    Fault::new(
        "tls-handshake-failed-client",
        "the upstream wants a certificate, nginx has none: an alert",
        client,
        ask_client,
    ),
    Fault::new(
        "tls-certificate-invalid-expired",
        "the upstream's certificate has expired, and proxy_ssl_verify is on",
        expired,
        ask_expired,
    ),
    Fault::new(
        "tls-certificate-invalid-name",
        "the certificate is made for another name, and proxy_ssl_verify is on",
        wrong,
        ask_wrong,
    ),
    Fault::new("tls-certificate-invalid-authority", "nobody known has signed the certificate", unknown, ask_unknown),
    Fault::new(
        "upstream-killed-tls",
        "the upstream's process is killed in the middle of a request over TLS",
        killed,
        ask_killed,
    ),
];

const PLAIN: u16 = 9001;
const SILENT: u16 = 9161;
const VERSION: u16 = 9162;
const NAME: u16 = 9163;
const CLIENT: u16 = 9164;
const EXPIRED: u16 = 9165;
const WRONG: u16 = 9166;
const UNKNOWN: u16 = 9167;
const KILLED: u16 = 9168;

/// The name on the certificates.
const ON_CERTIFICATE: &str = "app.example";

/// A self-signed certificate and its key in the lab's directory, as `NAME.pem` and `NAME.key`. OpenSSL 3.0 makes an expired one only
/// by way of a whole authority.
fn certificate(directory: &Path, name: &str, until: &str) -> Result<()> {
    if directory.join(format!("{name}.pem")).exists() {
        return Ok(());
    }
    let config = "[ca]\ndefault_ca=lab\n[lab]\ndatabase=index.txt\nnew_certs_dir=.\nserial=serial\nrand_serial=yes\ndefault_md=sha256\n\
                  policy=any\nx509_extensions=ext\nunique_subject=no\n[any]\ncommonName=supplied\n[ext]\nsubjectAltName=DNS:app.example\n\
                  basicConstraints=CA:TRUE\n[req]\ndistinguished_name=dn\n[dn]\n";
    fs::write(directory.join("openssl.cnf"), config).context("write openssl.cnf")?;
    fs::write(directory.join("index.txt"), "").context("write index.txt")?;
    let key = format!("{name}.key");
    let openssl = |arguments: &[&str]| {
        run(Command::new("openssl").current_dir(directory).env("OPENSSL_CONF", "openssl.cnf").args(arguments))
    };
    openssl(&["genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-out", &key])?;
    openssl(&[
        "req",
        "-new",
        "-config",
        "openssl.cnf",
        "-key",
        &key,
        "-subj",
        "/CN=app.example",
        "-out",
        "request.pem",
    ])?;
    openssl(&[
        "ca",
        "-batch",
        "-notext",
        "-config",
        "openssl.cnf",
        "-selfsign",
        "-keyfile",
        &key,
        "-in",
        "request.pem",
        "-out",
        &format!("{name}.pem"),
        "-startdate",
        "20200101000000Z",
        "-enddate",
        until,
    ])?;
    Ok(())
}

/// `openssl s_server` with a certificate that is valid until then.
fn serve(plan: &mut Plan, name: &'static str, port: u16, until: &str, arguments: &[&str]) -> SocketAddr {
    let address = plan.app(port);
    // What fails here fails again when the server starts, with the reason.
    let _made = certificate(&plan.directory, name, until);
    let file = |end: &str| plan.directory.join(format!("{name}.{end}")).display().to_string();
    let mut command = vec!["openssl".to_owned(), "s_server".to_owned(), "-accept".to_owned(), address.to_string()];
    command.extend(["-cert".to_owned(), file("pem"), "-key".to_owned(), file("key")]);
    command.extend(arguments.iter().map(|argument| (*argument).to_owned()));
    plan.upstreams.push(UpstreamPlan {
        name,
        kind: Kind::Program { command },
        listen: vec![address],
        open_files: None,
    });
    address
}

const VALID: &str = "20991231000000Z";
const PAST: &str = "20200201000000Z";

fn location(plan: &mut Plan, name: &str, address: SocketAddr, more: &[&str]) {
    let pass = format!("proxy_pass https://{address};");
    plan.config.location(&format!("/{name}/"), &[&[pass.as_str()], more].concat());
}

/// nginx verifies, and trusts this certificate.
fn verified(plan: &mut Plan, name: &str, address: SocketAddr, trusted: &str, wanted: &str) {
    let trusted = plan.directory.join(format!("{trusted}.pem"));
    let trusted = format!("proxy_ssl_trusted_certificate {};", trusted.display());
    let wanted = format!("proxy_ssl_name {wanted};");
    location(plan, name, address, &["proxy_ssl_verify on;", &trusted, &wanted]);
}

fn ask(site: &Site<'_>, name: &str, port: u16, expected: Expectation) -> Result<Vec<Witness>> {
    let exchange = site.connect()?.get(&format!("/{name}/1"))?;
    let attempt = Attempt::fresh(site.app(port), &[Outcome::TlsFailed], &[None]);
    let mut expected = expected;
    if expected.attempts.is_empty() {
        expected.attempts = vec![attempt];
    }
    Ok(vec![Witness::new(exchange, expected)?])
}

fn handshake(logged: &'static str, says: &[&str]) -> Expectation {
    Expectation::incident(502, &["tls-handshake-failed"], Vec::new()).logged(logged).says(says).never(&[
        "upstream-reset",
        "premature-close",
        "invalid-response",
        "tls-certificate-invalid",
    ])
}

fn refused(logged: &'static str, says: &[&str]) -> Expectation {
    Expectation::incident(502, &["tls-certificate-invalid"], Vec::new()).logged(logged).says(says).never(&[
        "upstream-reset",
        "premature-close",
        "tls-handshake-failed",
    ])
}

fn plain(plan: &mut Plan) {
    let address = plan.app(PLAIN);
    location(plan, "tls-handshake-failed-plain", address, &[]);
}

fn ask_plain(site: &Site<'_>) -> Result<Vec<Witness>> {
    let expected = handshake("SSL_do_handshake() failed (SSL: ", &["plain HTTP"]);
    ask(site, "tls-handshake-failed-plain", PLAIN, expected)
}

fn silent(plan: &mut Plan) {
    let address = plan.app(SILENT);
    plan.scripted("tls-handshake-failed-silent", vec![address], vec![format!("{address}=/hang")]);
    location(plan, "tls-handshake-failed-silent", address, &["proxy_connect_timeout 1s;"]);
}

fn ask_silent(site: &Site<'_>) -> Result<Vec<Witness>> {
    let attempt = Attempt::fresh(site.app(SILENT), &[Outcome::TimeoutConnect], &[Some("ETIMEDOUT"), None]);
    let logged = "upstream timed out (110: Connection timed out) while SSL handshaking to upstream";
    let mut expected = handshake(logged, &["proxy_connect_timeout"]);
    expected.status = Some(504);
    expected.attempts = vec![attempt];
    ask(site, "tls-handshake-failed-silent", SILENT, expected)
}

fn version(plan: &mut Plan) {
    let address = serve(plan, "tls-handshake-failed-version", VERSION, VALID, &["-www", "-tls1_3"]);
    location(plan, "tls-handshake-failed-version", address, &["proxy_ssl_protocols TLSv1.2;"]);
}

fn ask_version(site: &Site<'_>) -> Result<Vec<Witness>> {
    let expected = handshake("SSL_do_handshake() failed (SSL: ", &["alert 70", "proxy_ssl_protocols"]);
    ask(site, "tls-handshake-failed-version", VERSION, expected)
}

fn name(plan: &mut Plan) {
    let directory = plan.directory.clone();
    let file = |end: &str| directory.join(format!("tls-handshake-failed-name.{end}")).display().to_string();
    let (pem, key) = (file("pem"), file("key"));
    let arguments =
        ["-www", "-servername", ON_CERTIFICATE, "-servername_fatal", "-cert2", pem.as_str(), "-key2", key.as_str()];
    let address = serve(plan, "tls-handshake-failed-name", NAME, VALID, &arguments);
    location(
        plan,
        "tls-handshake-failed-name",
        address,
        &["proxy_ssl_server_name on;", "proxy_ssl_name nobody.example;"],
    );
}

fn ask_name(site: &Site<'_>) -> Result<Vec<Witness>> {
    let expected = handshake("SSL_do_handshake() failed (SSL: ", &["alert 112", "proxy_ssl_name"]);
    ask(site, "tls-handshake-failed-name", NAME, expected)
}

fn client(plan: &mut Plan) {
    let address = serve(plan, "tls-handshake-failed-client", CLIENT, VALID, &["-www", "-tls1_2", "-Verify", "1"]);
    location(plan, "tls-handshake-failed-client", address, &[]);
}

fn ask_client(site: &Site<'_>) -> Result<Vec<Witness>> {
    let expected = handshake("SSL_do_handshake() failed (SSL: ", &["alert 40", "proxy_ssl_certificate"]);
    ask(site, "tls-handshake-failed-client", CLIENT, expected)
}

fn expired(plan: &mut Plan) {
    let address = serve(plan, "tls-certificate-invalid-expired", EXPIRED, PAST, &["-www"]);
    verified(plan, "tls-certificate-invalid-expired", address, "tls-certificate-invalid-expired", ON_CERTIFICATE);
}

fn ask_expired(site: &Site<'_>) -> Result<Vec<Witness>> {
    let expected = refused("upstream SSL certificate verify error: (10:certificate has expired)", &["has expired"]);
    ask(site, "tls-certificate-invalid-expired", EXPIRED, expected)
}

fn wrong(plan: &mut Plan) {
    let address = serve(plan, "tls-certificate-invalid-name", WRONG, VALID, &["-www"]);
    verified(plan, "tls-certificate-invalid-name", address, "tls-certificate-invalid-name", "shop.example");
}

fn ask_wrong(site: &Site<'_>) -> Result<Vec<Witness>> {
    let expected =
        refused("upstream SSL certificate does not match \"shop.example\"", &["another name", "shop.example"]);
    ask(site, "tls-certificate-invalid-name", WRONG, expected)
}

fn unknown(plan: &mut Plan) {
    let address = serve(plan, "tls-certificate-invalid-authority", UNKNOWN, VALID, &["-www"]);
    let _made = certificate(&plan.directory, "another-authority", VALID);
    verified(plan, "tls-certificate-invalid-authority", address, "another-authority", ON_CERTIFICATE);
}

fn ask_unknown(site: &Site<'_>) -> Result<Vec<Witness>> {
    let expected = refused("upstream SSL certificate verify error: (", &["self-signed certificate"]);
    ask(site, "tls-certificate-invalid-authority", UNKNOWN, expected)
}

fn killed(plan: &mut Plan) {
    // Reads what comes, and has nothing to say: its standard input is empty.
    let address = serve(plan, "upstream-killed-tls", KILLED, VALID, &["-quiet"]);
    location(plan, "upstream-killed-tls", address, &[]);
}

fn ask_killed(site: &Site<'_>) -> Result<Vec<Witness>> {
    let server = site.upstream("upstream-killed-tls")?;
    let mut client = site.connect()?;
    client.send("GET", "/upstream-killed-tls/1", b"")?;
    std::thread::sleep(Duration::from_millis(300));
    send(server.pid(), Signal::SIGKILL)?;
    let attempt = Attempt::fresh(site.app(KILLED), &[Outcome::Reset, Outcome::Closed], &[None, Some("ECONNRESET")]);
    let expected = Expectation::incident(502, &["upstream-killed"], vec![attempt])
        .logged("upstream prematurely closed connection while reading response header from upstream")
        .says(&["SIGKILL", &format!("(pid {})", std::process::id())])
        .never(&["premature-close", "upstream-reset", "tls-handshake-failed"]);
    Ok(vec![Witness::new(client.receive()?, expected)?])
}
