//! Stock QEMU tools, and what they say of our images.

use std::path::Path;
use std::process::{Command, Output};

/// Runs a tool to its end.
///
/// # Errors
/// When it cannot be started; a test that needs it then fails and says so.
pub fn run_tool(name: &str, arguments: &[&str]) -> Result<Output, String> {
    Command::new(name)
        .args(arguments)
        .output()
        .map_err(|error| format!("start {name}, which this test needs: {error}"))
}

fn succeed(name: &str, arguments: &[&str]) -> Result<String, String> {
    let output = run_tool(name, arguments)?;
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if output.status.success() {
        Ok(text)
    } else {
        Err(format!(
            "{name} {}: {}: {text}",
            arguments.join(" "),
            output.status
        ))
    }
}

/// Lets `qemu-img check` look for errors and leaks.
///
/// # Errors
/// What it found.
pub fn check_image(image: &Path) -> Result<(), String> {
    succeed("qemu-img", &["check", "-q", "-f", "qcow2", &text(image)]).map(|_| ())
}

/// Compares what QEMU reads through a qcow2 image, and its size, with `expected`.
///
/// # Errors
/// Where they differ.
pub fn compare_image(image: &Path, expected: &[u8]) -> Result<(), String> {
    let header = std::fs::read(image).map_err(|error| format!("read {}: {error}", text(image)))?;
    let size = header
        .get(24..32)
        .and_then(|bytes| bytes.try_into().ok())
        .map(u64::from_be_bytes);
    if size != Some(expected.len() as u64) {
        return Err(format!(
            "{} says {size:?} bytes, not {}",
            text(image),
            expected.len()
        ));
    }
    let raw = tempfile::NamedTempFile::new().map_err(|error| error.to_string())?;
    std::fs::write(raw.path(), expected).map_err(|error| error.to_string())?;
    let (image, raw) = (text(image), text(raw.path()));
    succeed(
        "qemu-img",
        &["compare", "-q", "-f", "qcow2", "-F", "raw", &image, &raw],
    )
    .map(|_| ())
}

/// Runs `qemu-io` commands on an image, as a guest would write it.
///
/// # Errors
/// When QEMU refuses to open the image or a command fails.
pub fn qemu_io(format: &str, image: &Path, commands: &[String]) -> Result<(), String> {
    let mut arguments = vec!["-f", format];
    for command in commands {
        arguments.extend(["-c", command]);
    }
    let image = text(image);
    arguments.push(&image);
    let said = succeed("qemu-io", &arguments)?;
    // Some versions end with success although a command failed.
    if said.contains("failed") || said.contains("Pattern verification") {
        return Err(format!("qemu-io {commands:?}: {said}"));
    }
    Ok(())
}

fn text(path: &Path) -> String {
    path.to_str()
        .expect("BUG: a test's path is UTF-8")
        .to_owned()
}
