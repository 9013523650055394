//! A TLS handshake as nginx is configured to make it.

use std::{
    io::{self, Read as _, Write as _},
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustls::{
    AlertDescription, CertificateError, ClientConfig, ClientConnection, DigitallySignedStruct, Error, RootCertStore,
    SignatureScheme,
    client::{
        ResolvesClientCert, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject as _},
    server::ParsedCertificate,
    sign::CertifiedKey,
    version::{TLS12, TLS13},
};

use super::connect::Stream;
use crate::{
    check::{
        plan::Tls,
        seen::{CertificateFault, TlsDone, TlsFailure},
        speaks::Speaks,
    },
    live::nginx::Root,
};

/// The largest file of trusted certificates: a whole distribution's has 250 kB.
const LARGEST: usize = 4 << 20;

/// What is trusted, read where nginx reads it.
pub(super) type Trust = Result<Arc<RootCertStore>, String>;

/// Reads the certificates of a file below nginx's root directory.
pub(super) fn trust(root: &Root, path: &Path) -> Trust {
    let text = root.read(path, LARGEST).map_err(|error| format!("{}: {error}", path.display()))?;
    let mut store = RootCertStore::empty();
    let certificates = CertificateDer::pem_slice_iter(text.as_bytes()).flatten();
    let (added, _) = store.add_parsable_certificates(certificates);
    if added == 0 { Err(format!("{}: no certificate in it", path.display())) } else { Ok(Arc::new(store)) }
}

/// Lets every certificate pass and remembers what is wrong with it: nginx decides by itself what it minds.
#[derive(Debug)]
struct Witness {
    provider: Arc<CryptoProvider>,
    inner: Option<Arc<WebPkiServerVerifier>>,
    store: Option<Arc<RootCertStore>>,
    name: Option<ServerName<'static>>,
    fault: Mutex<Option<Error>>,
}

impl Witness {
    /// The certificate itself is among those that are trusted.
    fn trusts(&self, certificate: &CertificateDer<'_>) -> bool {
        let mut own = RootCertStore::empty();
        let is_one = own.add(certificate.clone().into_owned()).is_ok();
        is_one && self.store.as_ref().is_some_and(|store| own.roots.iter().all(|root| store.roots.contains(root)))
    }
}

impl ServerCertVerifier for Witness {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if let Some(inner) = &self.inner {
            let name = self.name.as_ref().unwrap_or(server_name);
            let result = inner.verify_server_cert(end_entity, intermediates, name, ocsp_response, now);
            // This library takes no authority's own certificate for a server's, which OpenSSL does: it compares neither name nor trust then.
            let fault = result.err().and_then(|error| match error {
                Error::InvalidCertificate(CertificateError::Other(_)) => match wrong_name(end_entity, name) {
                    None if self.trusts(end_entity) => None,
                    None => Some(error),
                    wrong => wrong,
                },
                error => Some(error),
            });
            *self.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn wrong_name(certificate: &CertificateDer<'_>, name: &ServerName<'_>) -> Option<Error> {
    let parsed = ParsedCertificate::try_from(certificate).ok()?;
    let error = verify_server_name(&parsed, name).err()?;
    matches!(
        error,
        Error::InvalidCertificate(CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. })
    )
    .then_some(error)
}

/// Has no certificate to show, and remembers whether one was asked for.
#[derive(Debug, Default)]
struct EmptyHanded {
    asked: AtomicBool,
}

impl ResolvesClientCert for EmptyHanded {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.asked.store(true, Ordering::Relaxed);
        None
    }

    fn has_certs(&self) -> bool {
        false
    }
}

/// The alert that ended a connection, where that is what the error is.
pub(super) fn alert(error: &io::Error) -> Option<String> {
    match error.get_ref()?.downcast_ref::<Error>()? {
        Error::AlertReceived(alert) => Some(alert_name(*alert)),
        _ => None,
    }
}

/// A connection with TLS on it.
#[derive(Debug)]
pub(super) struct Secured {
    pub(super) connection: ClientConnection,
    pub(super) stream: Stream,
}

/// Makes the handshake; `name` is what is sent as SNI.
pub(super) fn handshake(
    mut stream: Stream,
    tls: &Tls,
    name: Option<&str>,
    trusted: &Trust,
    h2: bool,
    patience: Duration,
) -> Result<(Secured, TlsDone), TlsFailure> {
    let other = |error: &dyn std::fmt::Display| TlsFailure::Other(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let has = |version: &str| tls.protocols.iter().any(|known| known == version);
    let versions: Vec<_> = [(has("TLSv1.2"), &TLS12), (has("TLSv1.3"), &TLS13)]
        .into_iter()
        .filter_map(|(on, v)| on.then_some(v))
        .collect();
    if versions.is_empty() {
        let text = format!("nginx offers {} only, which this check cannot speak", tls.protocols.join(" "));
        return Err(TlsFailure::NotTried(text));
    }
    let verified_name = ServerName::try_from(tls.name.clone()).ok();
    let inner = trusted.as_ref().ok().and_then(|store| {
        WebPkiServerVerifier::builder_with_provider(Arc::clone(store), Arc::clone(&provider)).build().ok()
    });
    let witness = Arc::new(Witness {
        provider: Arc::clone(&provider),
        inner,
        store: trusted.as_ref().ok().cloned(),
        name: verified_name.clone(),
        fault: Mutex::new(None),
    });
    let empty_handed = Arc::new(EmptyHanded::default());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&versions)
        .map_err(|error| other(&error))?
        .dangerous()
        .with_custom_certificate_verifier(Arc::clone(&witness) as Arc<dyn ServerCertVerifier>)
        .with_client_cert_resolver(Arc::clone(&empty_handed) as Arc<dyn ResolvesClientCert>);
    config.enable_sni = name.is_some();
    if h2 {
        config.alpn_protocols = vec![b"h2".to_vec()];
    }
    let sent = name.and_then(|name| ServerName::try_from(name.to_owned()).ok()).or(verified_name);
    let sent = sent.unwrap_or_else(|| ServerName::from(std::net::IpAddr::from([127, 0, 0, 1])));
    let mut connection = ClientConnection::new(Arc::new(config), sent).map_err(|error| other(&error))?;
    let wants_certificate = || empty_handed.asked.load(Ordering::Relaxed);
    shake(&mut connection, &mut stream, Instant::now() + patience).map_err(|failure| match failure {
        TlsFailure::Alert(alert) if wants_certificate() => TlsFailure::WantsCertificate(alert),
        failure => failure,
    })?;
    let version = connection.protocol_version().map_or_else(String::new, |version| format!("{version:?}"));
    let fault = witness.fault.lock().unwrap_or_else(PoisonError::into_inner).take();
    let certificate = match (trusted, fault) {
        (Err(why), _) if tls.verify => Some(CertificateFault::NoTrust(why.clone())),
        (_, fault) => fault.map(|error| certificate_fault(&error)),
    };
    Ok((
        Secured { connection, stream },
        TlsDone { version: version.replace('_', "."), certificate, wants_certificate: wants_certificate() },
    ))
}

fn shake(connection: &mut ClientConnection, stream: &mut Stream, deadline: Instant) -> Result<(), TlsFailure> {
    let mut first: Option<Vec<u8>> = None;
    while connection.is_handshaking() {
        while connection.wants_write() {
            connection.write_tls(stream).map_err(|error| io_failure(&error))?;
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(TlsFailure::Silent);
        }
        stream.patience(left).map_err(|error| io_failure(&error))?;
        let mut buffer = [0_u8; 16 << 10];
        let length = stream.read(&mut buffer).map_err(|error| io_failure(&error))?;
        if length == 0 {
            return Err(TlsFailure::Closed);
        }
        let bytes = &buffer[..length];
        let begin = first.get_or_insert_with(|| bytes[..length.min(64)].to_vec());
        let mut rest = bytes;
        while !rest.is_empty() {
            connection.read_tls(&mut rest).map_err(|error| io_failure(&error))?;
            if let Err(error) = connection.process_new_packets() {
                // The alert that tells the upstream why; it may not want to hear it.
                let _ = connection.write_tls(stream);
                return Err(match error {
                    Error::AlertReceived(alert) => TlsFailure::Alert(alert_name(alert)),
                    _ if Speaks::of(begin) != Speaks::Tls => TlsFailure::NotTls(begin.clone()),
                    error => TlsFailure::Other(error.to_string()),
                });
            }
        }
    }
    while connection.wants_write() {
        connection.write_tls(stream).map_err(|error| io_failure(&error))?;
    }
    stream.flush().map_err(|error| io_failure(&error))
}

fn alert_name(alert: AlertDescription) -> String {
    format!("{alert:?}")
}

fn io_failure(error: &io::Error) -> TlsFailure {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => TlsFailure::Reset,
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => TlsFailure::Silent,
        _ => TlsFailure::Other(error.to_string()),
    }
}

fn certificate_fault(error: &Error) -> CertificateFault {
    let Error::InvalidCertificate(error) = error else { return CertificateFault::Other(error.to_string()) };
    match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => CertificateFault::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => CertificateFault::NotYetValid,
        CertificateError::UnknownIssuer => CertificateFault::UnknownIssuer,
        CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
            CertificateFault::WrongName
        }
        CertificateError::Revoked => CertificateFault::Revoked,
        CertificateError::Other(error) => CertificateFault::Other(match error.to_string() {
            text if text.contains("CaUsedAsEndEntity") => {
                "it is an authority's own, and none of those that are trusted".to_owned()
            }
            text => text,
        }),
        other => CertificateFault::Other(format!("{other:?}")),
    }
}
