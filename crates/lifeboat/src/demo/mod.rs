//! `lifeboat demo`: the whole way of a VM through replication, disaster and recovery, on
//! this machine alone, with every byte compared.
//!
//! The VM is a guest in a thread of its own. It has two disks with FAT file systems, which
//! it uses through NBD only, and keeps a record of every byte that it wrote, apart from
//! everything that is shown. That record is what each recovery point, each failed-over
//! disk and the committed disks are compared with.
//!
//! ```text
//! guest -NBD-> volume (marks changes) -freeze, NBD-> capture -socket-> store -NBD-> comparison
//!   '-- its own record of every byte, copied at each freeze -------------------'
//! ```

mod check;
mod compare;
mod crash;
mod error;
mod fat;
mod folder;
mod guest;
mod primary;
mod protect;
mod random;
mod report;
mod running;
mod shadow;
mod takeover;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use lifeboat_model::{LineageId, RelationshipId, Sequence, VmId};
use lifeboat_sys::clock::Stopwatch;
use lifeboat_sys::host;
use signal_hook::consts::{SIGINT, SIGTERM};

pub use error::DemoError;

use self::folder::{Afterwards, WorkFolder};
use self::guest::Moment;
use self::random::Random;
use self::report::Report;
use crate::exit::Failure;
use crate::output::{self, OutputFormat};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Work in this new or empty folder; a new one among the temporary files unless given
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Keep the disks and the store afterwards
    #[arg(long)]
    keep: bool,

    /// Print one JSON value instead of text, as `--output json` does
    #[arg(long)]
    json: bool,

    /// Apply what waits in this store: the process that the demo kills
    #[arg(long, value_name = "DIR", hide = true, requires = "kill_at")]
    apply: Option<PathBuf>,

    /// The change to the file system before which the process is killed
    #[arg(long, value_name = "NUMBER", hide = true, requires = "apply")]
    kill_at: Option<u64>,
}

impl Args {
    /// How to print the result, where `global` is what every command is told.
    #[must_use]
    pub fn output(&self, global: OutputFormat) -> OutputFormat {
        if self.json {
            OutputFormat::Json
        } else {
            global
        }
    }
}

/// Shows the demo.
///
/// # Errors
/// When a step fails, or any byte is not what the guest wrote.
pub fn run(args: &Args, output: OutputFormat) -> Result<(), Failure> {
    if let (Some(store), Some(call)) = (&args.apply, args.kill_at) {
        return Ok(crash::apply_until_killed(store, call)?);
    }
    let afterwards = if args.keep {
        Afterwards::Keep
    } else {
        Afterwards::Remove
    };
    let watch = Stopwatch::start();
    let mut demo = Demo::prepare(args, afterwards, output)?;
    let shown = demo.show();
    demo.report.add_up(watch.elapsed());
    // A wrong byte is the worse news, and may be why something failed later.
    match shown {
        Err(failure) if demo.report.differences().next().is_none() => Err(failure),
        Ok(()) | Err(_) => demo.finish(),
    }
}

/// The demo under way.
struct Demo {
    folder: WorkFolder,
    output: OutputFormat,
    interrupted: Arc<AtomicBool>,
    vm: VmId,
    relationship: RelationshipId,
    lineage: LineageId,
    random: Random,
    /// What the guest had written at each frozen moment.
    moments: BTreeMap<Sequence, Arc<Moment>>,
    report: Report,
}

impl Demo {
    fn prepare(
        args: &Args,
        afterwards: Afterwards,
        output: OutputFormat,
    ) -> Result<Self, DemoError> {
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // The second one ends the process at once.
            let conditional = Arc::clone(&interrupted);
            signal_hook::flag::register_conditional_default(signal, conditional)
                .and_then(|_| signal_hook::flag::register(signal, Arc::clone(&interrupted)))
                .map_err(|source| DemoError::System {
                    what: "signals",
                    source,
                })?;
        }
        Ok(Self {
            folder: WorkFolder::prepare(args.dir.as_deref(), afterwards)?,
            output,
            interrupted,
            vm: VmId::from_bytes(random_bytes()?),
            relationship: RelationshipId::from_bytes(random_bytes()?),
            lineage: LineageId::from_bytes(random_bytes()?),
            random: Random::new(u64::from_ne_bytes(random_bytes()?)),
            moments: BTreeMap::new(),
            report: Report::new(),
        })
    }

    fn show(&mut self) -> Result<(), Failure> {
        self.say(&format!(
            "Lifeboat demo: a VM is replicated, its host is lost, and it goes on from its replica.\n\
             Nothing is simulated but the VM itself: a thread that changes files and raw blocks on\n\
             two disks over NBD, and keeps its own record of every byte. All that the replica gives\n\
             back is compared with that record. Folder: {}\n",
            self.folder.path().display()
        ))?;
        let store = self.protect()?;
        self.compare_all_over_nbd(&store)?;
        self.take_over(store)
    }

    /// Prints the report, and fails if anything was wrong.
    fn finish(mut self) -> Result<(), Failure> {
        let wrong = self.report.differences().next().and_then(|comparison| {
            let first = comparison.first.as_ref()?;
            Some(format!("{}: {first}", comparison.what))
        });
        if wrong.is_some() {
            self.folder.afterwards = Afterwards::Keep;
        }
        if self.folder.afterwards == Afterwards::Keep {
            self.report.folder = Some(self.folder.path().to_owned());
        }
        let seconds = self.report.total.seconds;
        self.output.print(&self.report, |report| {
            let mut text = format!("\nResult, after {seconds:.1} s\n{}", report.summary());
            if wrong.is_none() {
                text.push_str(&self.next_steps());
            }
            text
        })?;
        match wrong {
            None => Ok(()),
            Some(first) => Err(DemoError::Wrong {
                wrong_bytes: self.report.total.wrong_bytes,
                first,
                folder: self.folder.path().to_owned(),
            }
            .into()),
        }
    }

    fn next_steps(&self) -> String {
        let disk = self.folder.replica().join("disks/sda/head.raw");
        let kept = match self.folder.afterwards {
            Afterwards::Keep => format!(
                "  The VM's committed disk is {}; `mount -o loop,ro` shows its letters.\n",
                disk.display()
            ),
            Afterwards::Remove => {
                "  The folder is gone again; `lifeboat demo --keep` leaves it to look at.\n"
                    .to_owned()
            }
        };
        format!(
            "\nNext\n{kept}  \
             To protect a VM of your own, see README.md; `lifeboat store --help` is where it begins.\n"
        )
    }

    /// Prints text for people at once.
    fn say(&self, text: &str) -> Result<(), Failure> {
        match self.output {
            OutputFormat::Table => output::print(text),
            OutputFormat::Json => Ok(()),
        }
    }

    /// Ends the demo between two steps when the user wishes so.
    fn refuse_if_interrupted(&self) -> Result<(), DemoError> {
        if self.interrupted.load(Ordering::Relaxed) {
            Err(DemoError::Interrupted)
        } else {
            Ok(())
        }
    }
}

fn random_bytes<const N: usize>() -> Result<[u8; N], DemoError> {
    host::random_bytes().map_err(|source| DemoError::System {
        what: "random bytes",
        source,
    })
}
