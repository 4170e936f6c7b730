//! Merging: a sealed segment takes in the next newer one, so that the boundary between
//! them goes.
//!
//! Where both hold a block the older counts. The union is written under temporary names;
//! after the record `Merged` its files get their names, which a crash only delays.

use std::sync::Arc;

use lifeboat_model::{BLOCK_SIZE, DiskId, DiskSize};
use lifeboat_qcow2::SEGMENT_CLUSTER;
use lifeboat_sys::disk::DiskFile;

use crate::error::{IoContext, StoreError};
use crate::files;
use crate::index::{Index, IndexRecord, RunDigest, Saved};
use crate::record::{Lengths, Record, SegmentState};
use crate::segment::{CLUSTER_BLOCKS, Segment};
use crate::store::Store;

impl Store {
    /// Merges away boundaries between sealed segments that nothing refers to.
    pub(crate) fn merge_unreferenced(&mut self) -> Result<(), StoreError> {
        loop {
            let pairs = self.state.segments.windows(2);
            let mut mergeable = pairs
                .filter(|pair| pair[0].sealed && pair[1].sealed && !self.is_referenced(&pair[1]));
            let Some([into, from]) = mergeable
                .next()
                .and_then(|pair| <[SegmentState; 2]>::try_from(pair.to_vec()).ok())
            else {
                return Ok(());
            };
            if !self.merge(&into, &from)? {
                return Ok(());
            }
        }
    }

    /// Lets a sealed segment take in the next newer one: where both hold a block, the older
    /// counts. Answers `false`, and leaves both, when the disk has no room for the union.
    fn merge(&mut self, into: &SegmentState, from: &SegmentState) -> Result<bool, StoreError> {
        let mut lengths = Vec::new();
        for (at, image) in self.images.iter().enumerate() {
            let segment = |number| {
                image
                    .chain
                    .segment(number)
                    .expect("BUG: a segment of the state is in the chain")
            };
            let (older, newer) = (segment(into.number), segment(from.number));
            match self.write_merged(&image.id, &older, &newer, into.disks[at].size) {
                Ok(merged) => lengths.push(merged),
                Err(StoreError::DiskFull { .. }) => {
                    self.remove_merged(into.number)?;
                    return Ok(false);
                }
                Err(error) => return Err(error),
            }
        }
        self.save(&Record::Merged {
            into: into.number,
            from: from.number,
            lengths,
        })?;
        self.finish_merge()?;
        for (at, image) in self.images.iter().enumerate() {
            let lengths = self
                .state
                .segment(into.number)
                .expect("BUG: the merged segment is there")
                .disks[at]
                .lengths;
            let merged =
                Arc::new(self.open_segment_files(&image.id, into.number, true, lengths)?);
            image.chain.change(|segments| {
                segments.retain(|segment| segment.number() != from.number);
                let place = segments
                    .iter_mut()
                    .find(|segment| segment.number() == into.number);
                *place.expect("BUG: the merged segment is in the chain") = Arc::clone(&merged);
            });
        }
        Ok(true)
    }

    fn remove_merged(&self, number: u64) -> Result<(), StoreError> {
        for image in &self.images {
            let disk = self.disk.as_ref();
            files::remove(disk, &self.layout.merged_segment(&image.id, number))?;
            files::remove(disk, &self.layout.merged_index(&image.id, number))?;
        }
        Ok(())
    }

    /// Gives the files of a merged segment their names; repeats after a crash do no harm.
    pub(crate) fn finish_merge(&mut self) -> Result<(), StoreError> {
        let Some(merging) = self.state.merging else {
            return Ok(());
        };
        let position = self
            .state
            .position(merging.into)
            .expect("BUG: the merged segment is there");
        let next = self
            .state
            .segments
            .get(position + 1)
            .map(|next| next.number);
        for image in &self.images {
            let names = [
                (
                    self.layout.merged_segment(&image.id, merging.into),
                    self.layout.sealed_segment(&image.id, merging.into),
                ),
                (
                    self.layout.merged_index(&image.id, merging.into),
                    self.layout.segment_index(&image.id, merging.into),
                ),
            ];
            for (new, path) in names {
                if self.disk.kind(&new).context("look up", &new)?.is_some() {
                    self.disk.rename(&new, &path).context("rename", &new)?;
                }
            }
            self.relink(&image.id, merging.into, next)?;
            let folder = self.layout.segments(&image.id);
            self.disk.sync_dir(&folder).context("sync", &folder)?;
        }
        self.save(&Record::MergeFinished)?;
        for image in &self.images {
            self.unlink_segment(&image.id, merging.from)?;
        }
        Ok(())
    }

    /// Writes the union of two segments as a sealed image under temporary names.
    fn write_merged(
        &self,
        disk: &DiskId,
        older: &Arc<Segment>,
        newer: &Arc<Segment>,
        size: DiskSize,
    ) -> Result<Lengths, StoreError> {
        let number = older.number();
        let (data_path, index_path) = (
            self.layout.merged_segment(disk, number),
            self.layout.merged_index(disk, number),
        );
        let data = self.create_new(&data_path, SEGMENT_CLUSTER)?;
        let index_file = self.create_new(&index_path, 0)?;
        let mut union = Union {
            data: Arc::clone(&data),
            data_len: SEGMENT_CLUSTER,
            clusters: Default::default(),
            held: Index::default(),
            records: Vec::new(),
        };
        for segment in [older, newer] {
            segment
                .records(|record| union.add(segment, &record, size.blocks()))
                .context("merge into", &data_path)?;
        }
        let index_bytes: Vec<u8> = union
            .records
            .iter()
            .flat_map(|record| record.encode(number))
            .collect();
        let lengths = Lengths {
            data: union.data_len,
            index: index_bytes.len() as u64,
        };
        data.set_len(lengths.data).context("size", &data_path)?;
        index_file
            .write_at(&index_bytes, 0)
            .context("write", &index_path)?;
        index_file.sync().context("sync", &index_path)?;
        let merged = Segment::on_disk(number, data, index_file, lengths);
        self.write_metadata(&merged, &data_path, size, lengths, number)?;
        files::sync_parent(self.disk.as_ref(), &data_path)?;
        Ok(lengths)
    }
}

/// Two segments being written as one.
struct Union {
    data: Arc<dyn DiskFile>,
    data_len: u64,
    clusters: std::collections::HashMap<u64, u64>,
    held: Index,
    records: Vec<IndexRecord>,
}

impl Union {
    /// Adds those blocks of a record that are not held yet and lie below `end`.
    fn add(&mut self, segment: &Segment, record: &IndexRecord, end: u64) -> std::io::Result<()> {
        let run = record.first..record.first + u64::from(record.blocks);
        if run.start >= end {
            return Ok(());
        }
        for missing in self.held.missing(run.start..run.end.min(end)) {
            let whole = missing == run;
            match record.saved {
                Saved::Zero | Saved::Lost => self.note(missing, record.saved, RunDigest::Unknown),
                Saved::Data { host } => {
                    let mut block = missing.start;
                    while block < missing.end {
                        let stop = missing
                            .end
                            .min((block / CLUSTER_BLOCKS + 1) * CLUSTER_BLOCKS);
                        let from = host + (block - run.start) * BLOCK_SIZE;
                        let (to, digest) = self.copy(segment, from, block..stop)?;
                        let digest = if whole && stop == missing.end && block == missing.start {
                            record.digest
                        } else {
                            digest
                        };
                        self.note(block..stop, Saved::Data { host: to }, digest);
                        block = stop;
                    }
                }
            }
        }
        Ok(())
    }

    fn copy(
        &mut self,
        segment: &Segment,
        from: u64,
        blocks: std::ops::Range<u64>,
    ) -> std::io::Result<(u64, RunDigest)> {
        let data_len = &mut self.data_len;
        let cluster = *self
            .clusters
            .entry(blocks.start / CLUSTER_BLOCKS)
            .or_insert_with(|| {
                let host = *data_len;
                *data_len += SEGMENT_CLUSTER;
                host
            });
        let to = cluster + blocks.start % CLUSTER_BLOCKS * BLOCK_SIZE;
        let mut bytes = vec![0; ((blocks.end - blocks.start) * BLOCK_SIZE) as usize];
        segment.data().read_at(&mut bytes, from)?;
        self.data.write_at(&bytes, to)?;
        Ok((to, RunDigest::Known(xxhash_rust::xxh3::xxh3_128(&bytes))))
    }

    fn note(&mut self, range: std::ops::Range<u64>, saved: Saved, digest: RunDigest) {
        let mut block = range.start;
        while block < range.end {
            let stop = range.end.min(block + u64::from(u32::MAX));
            let blocks = u32::try_from(stop - block).expect("BUG: the run was cut to fit");
            self.held.insert(block, stop - block, saved);
            self.records.push(IndexRecord {
                first: block,
                blocks,
                saved,
                digest,
            });
            block = stop;
        }
    }
}
