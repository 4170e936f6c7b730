//! Who descends from whom.

use lifeboat_model::{Lineage, LineageId};

use crate::error::Refused;

/// The most lineages in a chain: a chain comes from a peer.
const MAX_ANCESTORS: usize = 4096;

/// Whether `lineage` descends from `older`, given the lineages that stood before it, in any
/// order, abandoned ones among them. A lineage is no ancestor of itself.
fn is_ancestor(older: LineageId, lineage: &Lineage, ancestors: &[Lineage]) -> bool {
    lineage.forks(ancestors).any(|(left, _)| left == older)
}

/// Refuses a lineage that neither descends from `left` nor has taken it up: an operator may name
/// a survivor over a history that it does not continue. A chain may be too long, too.
pub(crate) fn refuse_unless_descended(
    left: LineageId,
    lineage: &Lineage,
    ancestors: &[Lineage],
) -> Result<(), Refused> {
    let is_taken_up = || ancestors.iter().any(|ancestor| ancestor.id == left);
    if ancestors.len() <= MAX_ANCESTORS && (is_ancestor(left, lineage, ancestors) || is_taken_up())
    {
        Ok(())
    } else {
        Err(Refused::NotDescended { from: left })
    }
}

#[cfg(test)]
mod tests {
    use lifeboat_model::Sequence;

    use super::*;

    fn lineage(id: u8, forked_from: Option<u8>) -> Lineage {
        Lineage {
            counter: 1,
            id: LineageId::from_bytes([id; 16]),
            forked_from: forked_from.map(|id| (LineageId::from_bytes([id; 16]), Sequence::new(1))),
        }
    }

    fn descends(older: u8, of: &Lineage, ancestors: &[Lineage]) -> bool {
        is_ancestor(LineageId::from_bytes([older; 16]), of, ancestors)
    }

    #[test]
    fn only_the_chain_of_forks_makes_an_ancestor() {
        // 3 left 2, which left 1; 9 also left 1 and was abandoned.
        let chain = [lineage(1, None), lineage(9, Some(1)), lineage(2, Some(1))];
        let newest = lineage(3, Some(2));
        let ancestors = [1, 2, 3, 9].map(|id| descends(id, &newest, &chain));
        assert_eq!(ancestors, [true, true, false, false]);
        assert!(!descends(3, &chain[2], &[newest]));
        assert!(!descends(1, &newest, &chain[..1]), "a link is missing");
    }

    #[test]
    fn a_chain_that_bites_its_tail_ends() {
        let chain = [lineage(1, Some(2)), lineage(2, Some(1))];
        assert!(!descends(7, &lineage(3, Some(1)), &chain));
    }
}
