//! A host's own network: a namespace with one end of a cable, whose other end the test holds.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, Stdio};

/// A network namespace; it goes when this is dropped.
#[derive(Debug)]
pub struct Space {
    name: String,
    /// Where the test's end of the cable is.
    pub near: Ipv4Addr,
    /// Where the host is.
    pub far: Ipv4Addr,
}

/// Two networks, or none: nobody but an administrator may make them.
pub fn spaces() -> Option<[Space; 2]> {
    let made = [Space::new(0), Space::new(1)];
    match made {
        [Ok(one), Ok(other)] => Some([one, other]),
        [one, other] => {
            let why = one.err().or(other.err()).unwrap_or_default();
            println!(
                "NO NETWORK NAMESPACES HERE ({why}): both daemons share this machine's network, \
                 and only the relay between them delays, slows and cuts"
            );
            None
        }
    }
}

impl Space {
    fn new(number: u8) -> Result<Self, String> {
        // Other tests of this machine have other numbers.
        let id = std::process::id();
        let [_, _, second, third] = id.to_be_bytes();
        let address = |last| Ipv4Addr::new(10, 192 | second >> 2, third, number * 4 + last);
        let space = Self {
            name: format!("lb{id}n{number}"),
            near: address(1),
            far: address(2),
        };
        let (name, near, far) = (&space.name, space.near, space.far);
        ip(&format!("netns add {name}"))?;
        ip(&format!(
            "link add {name} type veth peer name line netns {name}"
        ))?;
        ip(&format!("addr add {near}/30 dev {name}"))?;
        ip(&format!("link set {name} up"))?;
        ip(&format!("-n {name} addr add {far}/30 dev line"))?;
        ip(&format!("-n {name} link set line up"))?;
        ip(&format!("-n {name} link set lo up"))?;
        space.lose_packets();
        Ok(space)
    }

    /// Packets come late, and some never, where the kernel can do that.
    fn lose_packets(&self) {
        let name = &self.name;
        let netem = format!("qdisc add dev {name} root netem delay 5ms loss 0.5%");
        if let Err(why) = run("tc", &netem) {
            println!("the kernel loses no packets here ({why}); only the relay delays");
        }
    }

    /// A program that runs in this network.
    pub fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name]).arg(program);
        command
    }

    /// Pulls the cable out: what is sent vanishes, and nobody is told.
    pub fn unplug(&self) {
        ip(&format!("link set {} down", self.name)).unwrap();
    }

    pub fn plug_in(&self) {
        ip(&format!("link set {} up", self.name)).unwrap();
    }
}

impl Drop for Space {
    fn drop(&mut self) {
        // The cable goes with one of its ends. What was never made is not there to be removed.
        let _ = ip(&format!("netns del {}", self.name));
    }
}

fn ip(arguments: &str) -> Result<(), String> {
    run("ip", arguments)
}

fn run(program: &str, arguments: &str) -> Result<(), String> {
    let output = Command::new(program)
        .args(arguments.split(' '))
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(format!("{program} {arguments}: {}", said.trim()))
}
