//! nginx's own functions: attaching to them, and where each nginx keeps what they are asked for.

use probe_abi::nginx::Layout;

use super::Followers;
use crate::live::{
    ebpf::{Attachment, Kernel, State, calibrate::calibrate, layout::Build, symbols::Binary},
    nginx::{Found, Master},
};

impl Followers {
    /// Whether nginx's own functions are to tell what it does.
    pub(super) const fn asks_nginx(&self) -> bool {
        self.scope.uprobes && self.kernel.is_some()
    }

    /// Whether this nginx's own word and its sockets are heard, so that packets need not tell what it does.
    pub(super) fn hears(&self, master: u32) -> bool {
        let on = |all: &[Attachment], name: &str| all.iter().any(|one| one.name == name && one.state != State::Off);
        let Some(kernel) = self.kernel.as_ref().filter(|_| self.scope.uprobes) else { return false };
        let functions = kernel.functions_of(master).unwrap_or_default();
        on(functions, "ngx_log_error_core")
            && on(functions, "ngx_http_special_response_handler")
            && on(kernel.attachments(), "inet_sock_set_state")
    }

    /// Whether a socket's record tells its place in the sequence too: then a SYN and a FIN on the wire say nothing new.
    pub(super) fn knows_sockets(&self) -> bool {
        let mut all = self.kernel.iter().flat_map(Kernel::attachments);
        all.any(|one| one.name == "inet_sock_set_state" && one.state == State::On)
    }

    pub(super) fn attach(&mut self, master: &Master, found: &Found) -> Vec<Attachment> {
        let off = |why: String| {
            vec![Attachment {
                name: "ngx_log_error_core",
                state: State::Off,
                program: "",
                why,
                lost: "failures are tied to connections by the error log and by time, not exactly",
            }]
        };
        if !self.scope.uprobes {
            return off("switched off (--no-uprobes)".to_owned());
        }
        let Some(kernel) = &mut self.kernel else { return off("the kernel programs are not loaded".to_owned()) };
        if let Some(Err(error)) = found.build.as_deref().map(Build::parse) {
            return off(format!("nginx {}: {error}", master.pid));
        }
        if found.build.is_none() {
            return off(format!(
                "nginx {}: its version is not known, and so not how its memory is laid out",
                master.pid
            ));
        }
        let answers = kernel.answers_of(found.unannounced.as_deref());
        kernel.attach_nginx(master.pid, answers).unwrap_or_else(|error| off(error.to_string()))
    }

    /// Where this nginx keeps what, as the kernel side numbers it.
    pub(super) fn layout(&mut self, layout: Option<&Layout>) -> u32 {
        let (Some(kernel), Some(layout)) = (&mut self.kernel, layout) else { return 0 };
        kernel.add_layout(layout).unwrap_or(0)
    }
}

/// Where this nginx keeps what: by version and build, checked against its machine code. Reads the program, which takes a while.
pub(super) fn layout_of(master: &Master, found: &Found) -> Option<Layout> {
    let mut build = found.build.as_deref().and_then(|text| Build::parse(text).ok())?;
    if let Ok(binary) = Binary::of_process(master.pid) {
        let calibration = calibrate(&mut build.layout, &binary);
        tracing::debug!("nginx {}: memory layout against machine code: {calibration:?}", master.pid);
    }
    Some(build.layout)
}
