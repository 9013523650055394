//! A headless Chromium, driven over a pipe by its own protocol (<https://chromedevtools.github.io/devtools-protocol/>): opens a page, sees what
//! goes wrong in it and what it asks the network for, and looks at it.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::unistd::pipe2;
use serde_json::{Value, json};
use tempfile::TempDir;

/// From the start of the browser to its first answer, and from any command to its answer.
const PATIENCE: Duration = Duration::from_secs(30);

/// The browser's process, which takes its children with it; killed when dropped. No [`crate::process::Process`]: that leaves a child no
/// descriptors.
#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A running browser with one page; killed when dropped, its profile gone with it.
#[derive(Debug)]
pub struct Browser {
    // The process goes before its profile: dropped in this order.
    process: Running,
    _profile: TempDir,
    commands: File,
    messages: Receiver<Value>,
    session: Option<String>,
    last_id: u64,
    events: Vec<Value>,
}

impl Browser {
    /// Starts Debian's `chromium`.
    pub fn start() -> Result<Self> {
        let profile = tempfile::Builder::new().prefix("probe502-browser-").tempdir().context("make a profile")?;
        let (their_input, commands) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let (answers, their_output) = pipe2(OFlag::O_CLOEXEC).context("make a pipe")?;
        let mut command = Command::new("chromium");
        command.args([
            "--headless=new",
            "--remote-debugging-pipe",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-first-run",
        ]);
        command.args(["--disable-background-networking", "--disable-component-update", "--disable-extensions"]);
        // The tests run as root, where Chromium's sandbox does not work; the pages are our own.
        command.args(["--no-sandbox", "--disable-dev-shm-usage", "--force-color-profile=srgb"]);
        command.arg(format!("--user-data-dir={}", profile.path().display())).arg("about:blank");
        // What a killed browser leaves behind goes with its profile.
        command.env("TMPDIR", profile.path());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let (input, output) = (their_input.as_raw_fd(), their_output.as_raw_fd());
        // SAFETY: the closure runs between fork and exec and makes system calls only. Both descriptors stay open until `spawn` returns.
        unsafe { command.pre_exec(move || place(input, output)) };
        let process = command
            .process_group(0)
            .spawn()
            .map(Running)
            .context("`cargo xtask setup` installs what the tests need, Debian's chromium among it")?;
        drop((their_input, their_output));
        let (sender, messages) = channel();
        std::thread::spawn(move || {
            for message in BufReader::new(File::from(answers)).split(0) {
                let Some(value) = message.ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok()) else {
                    break;
                };
                if sender.send(value).is_err() {
                    break;
                }
            }
        });
        let commands = File::from(commands);
        let mut browser =
            Self { process, _profile: profile, commands, messages, session: None, last_id: 0, events: Vec::new() };
        let target = browser.call("Target.createTarget", &json!({ "url": "about:blank" }))?;
        let attach = json!({ "targetId": target["targetId"], "flatten": true });
        let attached = browser.call("Target.attachToTarget", &attach)?;
        browser.session = attached["sessionId"].as_str().map(str::to_owned);
        for domain in ["Page", "Runtime", "Log", "Network"] {
            browser.call(&format!("{domain}.enable"), &json!({}))?;
        }
        Ok(browser)
    }

    /// One command and its answer.
    pub fn call(&mut self, method: &str, parameters: &Value) -> Result<Value> {
        self.last_id += 1;
        let id = self.last_id;
        let mut message = json!({ "id": id, "method": method, "params": parameters });
        if let Some(session) = &self.session {
            message["sessionId"] = json!(session);
        }
        let mut bytes = serde_json::to_vec(&message)?;
        bytes.push(0);
        self.commands.write_all(&bytes).with_context(|| format!("{method}: the browser does not listen"))?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let message = self.next(deadline).with_context(|| format!("waiting for the answer to {method}"))?;
            if message["id"] != json!(id) {
                self.events.push(message);
                continue;
            }
            if let Some(error) = message.get("error") {
                bail!("{method}: {error}");
            }
            return Ok(message["result"].clone());
        }
    }

    fn next(&mut self, deadline: Instant) -> Result<Value> {
        match self.messages.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(message) => Ok(message),
            Err(RecvTimeoutError::Timeout) => bail!("no answer within {PATIENCE:?}"),
            Err(RecvTimeoutError::Disconnected) => bail!("the browser is gone: {:?}", self.process.0.try_wait()),
        }
    }

    /// Opens a file and waits until it is loaded.
    pub fn load(&mut self, file: &Path) -> Result<()> {
        self.events.clear();
        let url = format!("file://{}", file.canonicalize().with_context(|| file.display().to_string())?.display());
        let answer = self.call("Page.navigate", &json!({ "url": url }))?;
        ensure!(answer.get("errorText").is_none(), "{url}: {answer}");
        let deadline = Instant::now() + PATIENCE;
        while !self.events.iter().any(|event| event["method"] == "Page.loadEventFired") {
            let message = self.next(deadline).with_context(|| format!("waiting for {url}"))?;
            self.events.push(message);
        }
        Ok(())
    }

    /// Opens a file and waits until it is loaded and painted. Gives the time that took by the page's own clock, from the start of the
    /// navigation to the first frame after it was loaded.
    pub fn open(&mut self, file: &Path) -> Result<Duration> {
        self.load(file)?;
        let painted = "new Promise(done => requestAnimationFrame(() => setTimeout(() => done(performance.now()), 0)))";
        let took = self.evaluate(painted)?.as_f64().context("the page's clock")?;
        Ok(Duration::from_secs_f64(took / 1_000.0))
    }

    /// The value of an expression in the page; a promise is waited for.
    pub fn evaluate(&mut self, expression: &str) -> Result<Value> {
        let parameters = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", &parameters)?;
        if let Some(error) = answer.get("exceptionDetails") {
            bail!("{expression}: {error}");
        }
        Ok(answer["result"]["value"].clone())
    }

    /// A number that an expression gives.
    pub fn number(&mut self, expression: &str) -> Result<u64> {
        let value = self.evaluate(expression)?;
        value.as_u64().with_context(|| format!("{expression} is {value}"))
    }

    /// Presses a key.
    pub fn press(&mut self, key: &str) -> Result<()> {
        let text = if key.chars().count() == 1 {
            key
        } else if key == "Enter" {
            "\r"
        } else {
            ""
        };
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            _ => 0,
        };
        let mut down = json!({ "type": "keyDown", "key": key, "windowsVirtualKeyCode": code });
        if !text.is_empty() {
            down["text"] = json!(text);
        }
        self.call("Input.dispatchKeyEvent", &down)?;
        self.call("Input.dispatchKeyEvent", &json!({ "type": "keyUp", "key": key, "windowsVirtualKeyCode": code }))?;
        Ok(())
    }

    /// Types a text into what has the focus.
    pub fn type_text(&mut self, text: &str) -> Result<()> {
        self.call("Input.insertText", &json!({ "text": text }))?;
        Ok(())
    }

    /// What has gone wrong in the page since it was opened: exceptions, errors and warnings of the console, breaches of its policy.
    pub fn complaints(&mut self) -> Result<Vec<String>> {
        // A round trip: what was said before is here after it.
        self.evaluate("0")?;
        let bad = |event: &&Value| match event["method"].as_str() {
            Some("Runtime.exceptionThrown") => true,
            Some("Runtime.consoleAPICalled") => event["params"]["type"] != "log",
            Some("Log.entryAdded") => event["params"]["entry"]["level"] != "verbose",
            _ => false,
        };
        Ok(self.events.iter().filter(bad).map(ToString::to_string).collect())
    }

    /// What the page has asked for since it was opened, itself left out.
    pub fn requests(&mut self) -> Result<Vec<String>> {
        self.evaluate("0")?;
        let asked = self.events.iter().filter(|event| event["method"] == "Network.requestWillBeSent");
        let urls = asked.filter_map(|event| event["params"]["request"]["url"].as_str());
        let own = self.events.iter().find(|event| event["method"] == "Network.requestWillBeSent");
        let own = own.and_then(|event| event["params"]["documentURL"].as_str()).unwrap_or_default();
        Ok(urls.filter(|url| *url != own && !url.starts_with("data:")).map(str::to_owned).collect())
    }

    /// How the page is seen: its width and height in CSS pixels, on a phone or not.
    pub fn view(&mut self, width: u32, height: u32, phone: bool) -> Result<()> {
        let scale = if phone { 2 } else { 1 };
        let metrics = json!({ "width": width, "height": height, "deviceScaleFactor": scale, "mobile": phone });
        self.call("Emulation.setDeviceMetricsOverride", &metrics)?;
        // Two frames later what came into view is laid out.
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(0))))")?;
        Ok(())
    }

    /// `screen` or `print`, light or dark.
    pub fn media(&mut self, media: &str, scheme: &str) -> Result<()> {
        let features = json!([{ "name": "prefers-color-scheme", "value": scheme }]);
        self.call("Emulation.setEmulatedMedia", &json!({ "media": media, "features": features }))?;
        Ok(())
    }

    /// Scripts run or they do not, from the next page on.
    pub fn scripts(&mut self, on: bool) -> Result<()> {
        self.call("Emulation.setScriptExecutionDisabled", &json!({ "value": !on }))?;
        Ok(())
    }

    /// A picture of what is in view.
    pub fn screenshot(&mut self, file: &Path) -> Result<()> {
        let picture = self.call("Page.captureScreenshot", &json!({ "format": "png" }))?;
        keep(file, &picture["data"])
    }

    /// The page on paper.
    pub fn pdf(&mut self, file: &Path) -> Result<()> {
        let parameters =
            json!({ "printBackground": false, "preferCSSPageSize": true, "paperWidth": 8.27, "paperHeight": 11.69 });
        let paper = self.call("Page.printToPDF", &parameters)?;
        keep(file, &paper["data"])
    }
}

/// Puts the pipes where Chromium looks for them: commands on 3, answers on 4.
fn place(input: RawFd, output: RawFd) -> std::io::Result<()> {
    // Each may stand where the other belongs: both are moved out of the way first.
    for (from, to) in [(input, 103), (output, 104), (103, 3), (104, 4)] {
        // SAFETY: plain numbers.
        if unsafe { libc::dup2(from, to) } < 0 {
            return Err(std::io::Error::last_os_error());
        }
    }
    for number in [103, 104] {
        // SAFETY: plain numbers.
        unsafe { libc::close(number) };
    }
    Ok(())
}

fn keep(file: &Path, data: &Value) -> Result<()> {
    let bytes = decode(data.as_str().context("no data")?).context("not base64")?;
    std::fs::write(file, bytes).with_context(|| format!("write {}", file.display()))
}

/// RFC 4648, section 4.
fn decode(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len() / 4 * 3);
    let (mut word, mut bits) = (0_u32, 0);
    for letter in text.bytes().filter(|letter| *letter != b'=') {
        let value = match letter {
            b'A'..=b'Z' => letter - b'A',
            b'a'..=b'z' => letter - b'a' + 26,
            b'0'..=b'9' => letter - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        (word, bits) = (word << 6 | u32::from(value), bits + 6);
        if bits >= 8 {
            bits -= 8;
            out.push(u8::try_from(word >> bits & 0xff).ok()?);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::decode;

    #[test]
    fn base64_is_read() {
        assert_eq!(decode("Zm9vYg==").as_deref(), Some(&b"foob"[..]));
        assert_eq!(decode("Zm9v").as_deref(), Some(&b"foo"[..]));
        assert_eq!(decode("Zm 9"), None);
    }
}
