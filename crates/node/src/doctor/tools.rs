//! QEMU's tools, which read and write the formats that Shale leaves to them.

use std::process::{Command, Stdio};

use super::Finding;
use crate::transfer::qemu::find;

/// Tool, Debian package, and what is not possible without it.
const TOOLS: &[(&str, &str, &str)] = &[
    ("qemu-img", "qemu-utils", "no export to qcow2, VMDK, VHDX and VDI"),
    ("qemu-nbd", "qemu-utils", "no import from and no export to qcow2, VMDK, VHDX and VDI"),
    ("qemu-storage-daemon", "qemu-utils", "no benchmarks beside it; nothing else needs it"),
    ("setpriv", "util-linux", "a tool of QEMU may outlive a killed node for a moment"),
];

pub(super) fn all() -> impl Iterator<Item = Finding> {
    TOOLS.iter().map(|(tool, package, without)| {
        let Some(path) = find(tool) else {
            return Finding::missing(tool, format!("it is not installed: {without}"))
                .advice(format!("apt-get install {package}"));
        };
        let output = Command::new(&path)
            .arg("--version")
            .env("LC_ALL", "C")
            .stdin(Stdio::null())
            .stderr(Stdio::null())
            .output();
        let again = format!("apt-get install --reinstall {package}");
        match output {
            Ok(output) if output.status.success() => {
                Finding::ok(tool, format!("{} {}", path.display(), version(&output.stdout)))
            }
            Ok(output) => {
                let status = output.status;
                Finding::missing(tool, format!("{} ends with {status}: {without}", path.display()))
                    .advice(again)
            }
            Err(error) => Finding::missing(
                tool,
                format!("{} cannot be started: {error}: {without}", path.display()),
            )
            .advice(again),
        }
    })
}

/// The first word of the first line that begins with a digit.
fn version(output: &[u8]) -> String {
    let text = String::from_utf8_lossy(output);
    let words = text.lines().next().unwrap_or_default().split_whitespace();
    let is_number = |word: &&str| word.starts_with(|c: char| c.is_ascii_digit());
    words.into_iter().find(is_number).unwrap_or("of an unknown version").chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use super::version;

    #[test]
    fn versions_are_found_in_what_tools_say() {
        let cases = [
            ("qemu-img version 7.2.19 (Debian 1:7.2+dfsg-7)\nCopyright", "7.2.19"),
            ("qemu-nbd 10.0.2 (Debian)\n", "10.0.2"),
            ("setpriv from util-linux 2.41\n", "2.41"),
            ("", "of an unknown version"),
        ];
        for (said, found) in cases {
            assert_eq!(version(said.as_bytes()), found);
        }
    }
}
