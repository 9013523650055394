//! `probe502 doctor`.

use std::{collections::BTreeMap, fmt::Write as _, io::Write as _};

use super::AppError;
use crate::{
    cli::plan::Output,
    live::{
        capture::interfaces,
        ebpf::{Attachment, Depth, Kernel, LoadOptions, State, Tier},
        nginx::{self, Found, Master},
        privilege::{self, Account, Fence},
    },
    report::redact,
};

/// One thing that was looked at.
struct Finding {
    name: String,
    state: State,
    /// How it is, or why not.
    why: String,
    /// What cannot be seen without it.
    lost: String,
    /// What to do about it.
    remedy: &'static str,
}

/// Looks at everything `watch` needs, one after another, and detaches again.
pub fn run(hide_btf: bool, output: Output) -> Result<(), AppError> {
    let examine = |master: Master| {
        let found = nginx::examine(&master);
        (master, found)
    };
    let masters: Vec<(Master, Found)> = nginx::masters().into_iter().map(examine).collect();
    let mut findings = vec![root()];
    findings.extend(kernel(hide_btf, &masters));
    findings.push(packets());
    findings.extend(nginx_here(&masters));
    findings.extend(fences());
    let text = if output.json { as_json(&findings) } else { as_text(&findings) };
    // A reader that goes away early has read enough.
    let _ = write!(std::io::stdout(), "{text}");
    Ok(())
}

fn root() -> Finding {
    let lacking = privilege::lacking();
    let enough = lacking.is_empty();
    let why = match (enough, nix::unistd::geteuid().is_root()) {
        (true, true) => "running as root".to_owned(),
        (true, false) => "not running as root, with the capabilities that are needed".to_owned(),
        (false, _) => format!("not running as root, and without {}", lacking.join(", ")),
    };
    Finding {
        name: "root".into(),
        state: if enough { State::On } else { State::Off },
        why,
        lost: if enough { String::new() } else { "everything: watch does not start".into() },
        remedy: if enough { "" } else { "run it with sudo" },
    }
}

fn kernel(hide_btf: bool, masters: &[(Master, Found)]) -> Vec<Finding> {
    let options = LoadOptions { depth: Depth::Standard, hide_btf, ..LoadOptions::default() };
    let mut kernel = match Kernel::load(&options) {
        Ok(kernel) => kernel,
        Err(error) => {
            return vec![Finding {
                name: "eBPF".into(),
                state: State::Off,
                why: error.to_string(),
                lost: "everything but packets and logs".into(),
                remedy: "needs root, Linux 5.8 or newer with CONFIG_BPF_SYSCALL, and no lockdown=confidentiality",
            }];
        }
    };
    let mut findings = vec![Finding {
        name: "eBPF".into(),
        state: State::On,
        why: format!("{} programs loaded", kernel.verified_instructions().len()),
        lost: String::new(),
        remedy: "",
    }];
    let tier = kernel.tier();
    findings.push(Finding {
        name: "tier".into(),
        state: if tier == Tier::A { State::On } else { State::Degraded },
        why: tier.text().into(),
        lost: tier.lost().into(),
        remedy: if tier == Tier::A { "" } else { "a newer kernel (6.11 has all of it)" },
    });
    findings.push(match kernel.btf_problem() {
        None => Finding {
            name: "BTF".into(),
            state: if kernel.missing_members().is_empty() { State::On } else { State::Degraded },
            why: match kernel.missing_members() {
                [] => "the kernel's type information has every member that is used".into(),
                missing => format!("this kernel has no {}", missing.join(", ")),
            },
            lost: String::new(),
            remedy: "",
        },
        Some(problem) => Finding {
            name: "BTF".into(),
            state: State::Off,
            why: problem.to_owned(),
            lost: "sockets cannot be read: no exact link, no counters, no reasons".into(),
            remedy: "a kernel built with CONFIG_DEBUG_INFO_BTF (every distribution's since 5.10) has /sys/kernel/btf/vmlinux",
        },
    });
    findings.extend(kernel.attachments().iter().map(from_attachment));
    if masters.is_empty() {
        findings.push(uprobes());
    }
    for (master, found) in masters {
        let answers = kernel.answers_of(found.unannounced.as_deref());
        match kernel.attach_nginx(master.pid, answers) {
            Ok(attachments) => {
                let every = kernel.every_answer_of(master.pid);
                findings.extend(attachments.iter().map(|attachment| Finding {
                    name: format!("nginx {} uprobe {}", master.pid, attachment.name),
                    ..of_function(attachment, every)
                }));
            }
            Err(error) => findings.push(Finding {
                name: format!("nginx {} uprobes", master.pid),
                state: State::Off,
                why: error.to_string(),
                lost: "failures are tied to requests by logs and packets only".into(),
                remedy: "an nginx that exports its functions (every usual build does)",
            }),
        }
    }
    findings
}

/// Without an nginx to try them on, only whether the kernel offers them at all.
fn uprobes() -> Finding {
    let offered = std::path::Path::new("/sys/bus/event_source/devices/uprobe").exists();
    Finding {
        name: "nginx uprobes".into(),
        state: if offered { State::On } else { State::Off },
        why: if offered {
            "this kernel offers uprobes; no nginx runs to try them on".into()
        } else {
            "this kernel offers no uprobes".into()
        },
        lost: if offered { String::new() } else { "failures are tied to requests by logs and packets only".into() },
        remedy: if offered { "" } else { "a kernel with CONFIG_UPROBE_EVENTS" },
    }
}

/// One of nginx's functions; `every`: why each answer of it has to be looked at.
fn of_function(attachment: &Attachment, every: Option<&str>) -> Finding {
    let why = match (attachment.program, every) {
        ("ngx_http_upstream_test_next", _) => "only answers of requests that have trouble pay for it".to_owned(),
        ("ngx_http_send_header", Some(why)) => format!("every answer pays for it: {why}"),
        ("ngx_http_send_header", None) => {
            "every answer pays for it: this kernel or this build of nginx offers no other way".to_owned()
        }
        _ => return from_attachment(attachment),
    };
    Finding { why, ..from_attachment(attachment) }
}

fn from_attachment(attachment: &Attachment) -> Finding {
    Finding {
        name: attachment.name.to_owned(),
        state: attachment.state,
        why: match attachment.program {
            program if program.ends_with("_return") => "only this call pays for it (fexit)".to_owned(),
            program if program == attachment.name && program.starts_with("sys_exit_") => {
                "by a tracepoint, for which every system call of the host pays a little".to_owned()
            }
            _ => attachment.why.clone(),
        },
        lost: if attachment.state == State::On { String::new() } else { attachment.lost.to_owned() },
        remedy: "",
    }
}

fn packets() -> Finding {
    let found = interfaces::list(None).map_err(|error| error.to_string()).and_then(|list| {
        let name = list.iter().find(|interface| interface.up).map(|interface| interface.name.clone());
        let name = name.ok_or_else(|| "no interface is up".to_owned())?;
        let opened = pcap::Capture::from_device(name.as_str()).and_then(|inactive| inactive.snaplen(96).open());
        opened.map(|_| list.len()).map_err(|error| format!("{name}: {error}"))
    });
    match found {
        Ok(count) => Finding {
            name: "packet capture".into(),
            state: State::On,
            why: format!("libpcap can open an interface; {count} here"),
            lost: String::new(),
            remedy: "",
        },
        Err(error) => Finding {
            name: "packet capture".into(),
            state: State::Off,
            why: error,
            lost: "what was on the wire: resets of other hosts, the order of FIN and request".into(),
            remedy: "needs root or CAP_NET_RAW",
        },
    }
}

/// What the program does with the rights it has.
fn fences() -> Vec<Finding> {
    let finding = |name: &str, fence: &Fence, whole: &str, remedy: &'static str| {
        let (state, why) = match fence {
            Fence::Whole => (State::On, whole.to_owned()),
            Fence::Part(why) => (State::Degraded, why.clone()),
            Fence::None(why) => (State::Off, why.clone()),
        };
        let lost = if state == State::Off { "a fence against mistakes; nothing that watch sees" } else { "" };
        let remedy = if state == State::Off { remedy } else { "" };
        Finding { name: name.to_owned(), state, why, lost: lost.to_owned(), remedy }
    };
    let user = match Account::find(None) {
        Ok(account) => format!("user {} with --no-follow", account.numbers().0),
        Err(error) => format!("{error}: name one with --user for --no-follow"),
    };
    let stays = format!(
        "stays root while it follows nginx (its namespaces, files and functions are looked at again whenever it changes); {user}"
    );
    let mut findings = vec![finding("account", &Fence::Whole, &stays, "")];
    match privilege::try_out() {
        Ok(fences) => findings.extend([
            finding(
                "thread capabilities",
                &fences.capabilities,
                "threads that read packets, records and logs, and the one that thinks, give up what they do not need",
                "",
            ),
            finding(
                "Landlock",
                &fences.files,
                "threads that write reach no file but those below the output folder",
                "Linux 5.13 with landlock in lsm= of the kernel's command line",
            ),
            finding(
                "seccomp",
                &fences.calls,
                "these threads start no program and load nothing into the kernel",
                "a kernel with CONFIG_SECCOMP_FILTER",
            ),
        ]),
        Err(error) => findings.push(finding("fences", &Fence::None(error.to_string()), "", "")),
    }
    findings
}

fn nginx_here(masters: &[(Master, Found)]) -> Vec<Finding> {
    if masters.is_empty() {
        return vec![Finding {
            name: "nginx".into(),
            state: State::Off,
            why: "none runs on this host".into(),
            lost: String::new(),
            remedy: "start nginx, or let watch wait for it with --wait",
        }];
    }
    masters
        .iter()
        .map(|(master, found)| {
            let version = found.instance.version.as_deref().unwrap_or("of unknown version").to_owned();
            Finding {
                name: format!("nginx {}", master.pid),
                state: if found.gaps.is_empty() { State::On } else { State::Degraded },
                why: format!(
                    "{version}, {} workers, {} error logs that can be followed",
                    master.workers.len(),
                    found.error_logs.len()
                ),
                lost: found.gaps.join("; "),
                remedy: "",
            }
        })
        .collect()
}

fn word(state: State) -> &'static str {
    match state {
        State::On => "on",
        State::Degraded => "degraded",
        State::Off => "off",
    }
}

fn as_text(findings: &[Finding]) -> String {
    let mut out = String::new();
    let widest = findings.iter().map(|finding| finding.name.chars().count()).max().unwrap_or(0).min(44);
    for finding in findings {
        let name = redact::text(&finding.name);
        let mut lines = crate::report::text::wrap(&redact::text(&finding.why), 100 - widest - 12);
        for (label, text) in [("lost: ", finding.lost.as_str()), ("do: ", finding.remedy)] {
            if !text.is_empty() {
                lines.extend(crate::report::text::wrap(&format!("{label}{}", redact::text(text)), 100 - widest - 12));
            }
        }
        let mut lines = lines.into_iter();
        let first = lines.next().unwrap_or_default();
        let _ = writeln!(out, "{name:<widest$}  {:<8}  {first}", word(finding.state));
        for line in lines {
            let _ = writeln!(out, "{:<widest$}  {:<8}  {line}", "", "");
        }
    }
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for finding in findings {
        *counts.entry(word(finding.state)).or_default() += 1;
    }
    let counted: Vec<String> = counts.iter().map(|(state, count)| format!("{count} {state}")).collect();
    let _ = writeln!(out, "\n{}", counted.join(", "));
    out
}

fn as_json(findings: &[Finding]) -> String {
    let list: Vec<_> = findings
        .iter()
        .map(|finding| {
            serde_json::json!({
                "name": finding.name,
                "state": word(finding.state),
                "why": finding.why,
                "lost": finding.lost,
                "remedy": finding.remedy,
            })
        })
        .collect();
    format!("{}\n", serde_json::json!({ "type": "doctor", "findings": list }))
}
