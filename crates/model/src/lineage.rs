//! Who continues whom: lineages, and the receipts given within one.

use serde::{Deserialize, Serialize};

use crate::{DeltaId, LineageId, Sequence};

/// One unbroken history of a VM, and where it left the one before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Lineage {
    /// How many take-overs led here; a label for people, never compared.
    pub counter: u32,
    /// Random: two sites that take over at once get different ones.
    pub id: LineageId,
    /// The lineage this one left and the last moment they share; absent for the first.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub forked_from: Option<(LineageId, Sequence)>,
}

impl Lineage {
    /// Which lineages this one continues, the nearest first, and at which moment each was left;
    /// `ancestors` in any order, abandoned ones among them. It ends where a link is missing.
    pub fn forks(&self, ancestors: &[Self]) -> impl Iterator<Item = (LineageId, Sequence)> {
        let find = |id| ancestors.iter().find(move |ancestor| ancestor.id == id);
        // A chain that bites its tail ends after as many steps as it has links.
        std::iter::successors(self.forked_from, move |(left, _)| find(*left)?.forked_from)
            .take(ancestors.len() + 1)
    }
}

/// The replica's word that one delta is complete, verified, durable and can be applied.
///
/// A primary forgets what it knows of a moment only for a receipt that matches in
/// all three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Receipt {
    pub lineage: LineageId,
    pub sequence: Sequence,
    pub id: DeltaId,
}
