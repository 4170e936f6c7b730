//! The reference counts of an image that is written in one go.

use std::io;

use lifeboat_sys::disk::DiskFile;

use crate::geometry::Geometry;

/// Bytes of one reference count.
pub(crate) const COUNT_SIZE: u64 = 2;

/// A refcount table followed by all its blocks, at the end of the image.
#[derive(Debug, Clone, Copy)]
pub(crate) struct RefcountArea {
    first_cluster: u64,
    pub table_clusters: u64,
    blocks: u64,
}

impl RefcountArea {
    /// The area that begins at `first_cluster` and counts everything up to its own end.
    pub fn after(geometry: &Geometry, first_cluster: u64) -> Self {
        let mut area = Self {
            first_cluster,
            table_clusters: 1,
            blocks: 1,
        };
        // Each step can only enlarge the area, and a larger one needs hardly any more.
        loop {
            let blocks = area
                .end_cluster()
                .div_ceil(Self::counts_per_block(geometry));
            let table_clusters = geometry.clusters_for(blocks * 8);
            if (blocks, table_clusters) == (area.blocks, area.table_clusters) {
                return area;
            }
            area.blocks = blocks;
            area.table_clusters = table_clusters;
        }
    }

    pub fn table_offset(&self, geometry: &Geometry) -> u64 {
        self.first_cluster * geometry.cluster_size()
    }

    /// The first cluster behind the area: the length of the image in clusters.
    pub fn end_cluster(&self) -> u64 {
        self.first_cluster + self.table_clusters + self.blocks
    }

    /// Writes table and blocks; a cluster has one reference if `is_used` says so.
    pub fn write(
        &self,
        file: &dyn DiskFile,
        geometry: &Geometry,
        is_used: impl Fn(u64) -> bool,
    ) -> io::Result<()> {
        let cluster_size = geometry.cluster_size();
        let first_block = self.first_cluster + self.table_clusters;
        let mut table: Vec<u8> = (first_block..first_block + self.blocks)
            .flat_map(|block| (block * cluster_size).to_be_bytes())
            .collect();
        table.resize((self.table_clusters * cluster_size) as usize, 0);
        file.write_at(&table, self.table_offset(geometry))?;

        let per_block = Self::counts_per_block(geometry);
        let mut bytes = vec![0; cluster_size as usize];
        for block in 0..self.blocks {
            for (index, count) in bytes.chunks_exact_mut(COUNT_SIZE as usize).enumerate() {
                let cluster = block * per_block + index as u64;
                let used = cluster < self.end_cluster() && is_used(cluster);
                count.copy_from_slice(&u16::from(used).to_be_bytes());
            }
            file.write_at(&bytes, (first_block + block) * cluster_size)?;
        }
        Ok(())
    }

    fn counts_per_block(geometry: &Geometry) -> u64 {
        geometry.cluster_size() / COUNT_SIZE
    }
}
