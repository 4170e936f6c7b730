//! `lifeboat store verify`, and how a verification is printed.

use lifeboat_model::Sequence;
use lifeboat_store::Verification;
use serde::Serialize;

use super::StoreArgs;
use crate::commands::{open_store, shown};
use crate::exit::Failure;
use crate::output::OutputFormat;
use crate::progress::Progress;
use crate::size::Bytes;

/// What a verification found, as it is printed.
#[derive(Debug, Serialize)]
pub struct VerificationView {
    verified_bytes: u64,
    not_verifiable_bytes: u64,
    findings: Vec<FindingView>,
}

#[derive(Debug, Serialize)]
struct FindingView {
    path: String,
    what: String,
    affected_points: Vec<Sequence>,
}

impl VerificationView {
    #[must_use]
    pub fn new(verification: Verification) -> Self {
        let findings = verification.findings.into_iter();
        Self {
            verified_bytes: verification.verified_bytes,
            not_verifiable_bytes: verification.not_verifiable_bytes,
            findings: findings
                .map(|finding| FindingView {
                    path: shown(&finding.path),
                    what: finding.what,
                    affected_points: finding.points,
                })
                .collect(),
        }
    }

    /// Fails the command if anything was found.
    ///
    /// # Errors
    /// [`Failure::Findings`].
    pub fn outcome(&self) -> Result<(), Failure> {
        match self.findings.len() {
            0 => Ok(()),
            count => Err(Failure::Findings { count }),
        }
    }
}

/// The findings for people.
#[must_use]
pub fn verification_text(view: &VerificationView) -> String {
    let mut text = String::new();
    for finding in &view.findings {
        text.push_str(&format!("{}: {}\n", finding.path, finding.what));
        if !finding.affected_points.is_empty() {
            let points: Vec<String> = finding
                .affected_points
                .iter()
                .map(Sequence::to_string)
                .collect();
            let points = points.join(", ");
            text.push_str(&format!("  recovery points affected: {points}\n"));
        }
    }
    let findings = match view.findings.len() {
        0 => "nothing is wrong".to_owned(),
        count => format!("findings: {count}"),
    };
    text.push_str(&format!(
        "{} verified, {} without a digest so far; {findings}\n",
        Bytes(view.verified_bytes),
        Bytes(view.not_verifiable_bytes),
    ));
    text
}

/// Verifies the whole store.
///
/// # Errors
/// [`Failure::Findings`] when something is wrong, after it was printed.
pub fn run(args: &StoreArgs, output: OutputFormat) -> Result<(), Failure> {
    let store = open_store(&args.folder, "store verify")?;
    let progress = Progress::bytes("verified");
    let verification = store.verify(&mut |bytes| progress.set(bytes))?;
    drop(progress);
    let view = VerificationView::new(verification);
    output.print(&view, verification_text)?;
    view.outcome()
}
