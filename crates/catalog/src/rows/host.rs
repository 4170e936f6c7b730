//! Settings of the host, who may replicate to it, and the hosts it knows.

use lifeboat_model::Timestamp;
use rusqlite::{Row, params};

use crate::catalog::{Change, Reader};
use crate::column::{self, bounded, micros};
use crate::document::Document;
use crate::error::{CatalogError, Doing};

/// Which host may send replicas here, and what else was settled for it.
#[derive(Debug, Clone, PartialEq)]
pub struct AuthorizationEntry {
    /// The name or pattern as the administrator wrote it. Unique without regard to the case
    /// of ASCII letters.
    pub allowed_primary: String,
    pub document: Document,
}

/// Another host.
#[derive(Debug, Clone, PartialEq)]
pub struct Peer {
    /// Unique without regard to the case of ASCII letters.
    pub host: String,
    pub address: String,
    /// Absent when it was never reached.
    pub last_seen: Option<Timestamp>,
    pub document: Document,
}

impl Reader<'_> {
    /// The setting of this name, if it was ever saved.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn setting(&self, key: &str) -> Result<Option<Document>, CatalogError> {
        let sql = "SELECT document FROM setting WHERE key = ?1";
        self.row("read a setting", sql, [key], |row| {
            column::document(row, "document")
        })
    }

    /// All settings, by name.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn settings(&self) -> Result<Vec<(String, Document)>, CatalogError> {
        let sql = "SELECT key, document FROM setting ORDER BY key";
        self.rows("read the settings", sql, [], |row| {
            Ok((row.get("key")?, column::document(row, "document")?))
        })
    }

    /// All entries, by name.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn authorization_entries(&self) -> Result<Vec<AuthorizationEntry>, CatalogError> {
        let sql = "SELECT * FROM authorization_entry ORDER BY allowed_primary";
        self.rows("read the authorization entries", sql, [], |row| {
            Ok(AuthorizationEntry {
                allowed_primary: row.get("allowed_primary")?,
                document: column::document(row, "document")?,
            })
        })
    }

    /// The peer of this name.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn peer(&self, host: &str) -> Result<Option<Peer>, CatalogError> {
        let sql = "SELECT * FROM peer WHERE host = ?1";
        self.row("read a peer", sql, [host], peer)
    }

    /// All peers, by name.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn peers(&self) -> Result<Vec<Peer>, CatalogError> {
        let sql = "SELECT * FROM peer ORDER BY host";
        self.rows("read the peers", sql, [], peer)
    }
}

impl Change<'_> {
    /// Saves a setting, in place of the one of this name.
    ///
    /// # Errors
    /// Refused when it is too long; accidents of the catalog.
    pub fn setting_save(&self, key: &str, document: &Document) -> Result<(), CatalogError> {
        let sql = "INSERT INTO setting (key, document) VALUES (?1, ?2)
            ON CONFLICT (key) DO UPDATE SET document = excluded.document";
        let key = bounded("the name of the setting", key)?;
        let document = document.encode("the setting")?;
        self.execute(sql, params![key, document])
            .doing("save a setting")?;
        Ok(())
    }

    /// Removes a setting; nothing happens when there is none.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn setting_remove(&self, key: &str) -> Result<(), CatalogError> {
        self.execute("DELETE FROM setting WHERE key = ?1", [key])
            .doing("remove a setting")?;
        Ok(())
    }

    /// Saves an entry, in place of the one of this name.
    ///
    /// # Errors
    /// Refused when it is too long; accidents of the catalog.
    pub fn authorization_entry_save(&self, entry: &AuthorizationEntry) -> Result<(), CatalogError> {
        let sql = "INSERT INTO authorization_entry (allowed_primary, document) VALUES (?1, ?2)
            ON CONFLICT (allowed_primary) DO UPDATE SET document = excluded.document";
        let name = bounded("the name of the allowed primary", &entry.allowed_primary)?;
        let document = entry.document.encode("the authorization entry")?;
        self.execute(sql, params![name, document])
            .doing("save an authorization entry")?;
        Ok(())
    }

    /// Whether there was an entry of this name; it is gone.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn authorization_entry_remove(&self, allowed_primary: &str) -> Result<bool, CatalogError> {
        let sql = "DELETE FROM authorization_entry WHERE allowed_primary = ?1";
        self.execute(sql, [allowed_primary])
            .doing("remove an authorization entry")
            .map(|removed| removed > 0)
    }

    /// Saves what is known of a peer, in place of the one of this name.
    ///
    /// # Errors
    /// Refused when it is too long; accidents of the catalog.
    pub fn peer_save(&self, peer: &Peer) -> Result<(), CatalogError> {
        let sql = "INSERT INTO peer (host, address, last_seen, document) VALUES (?1, ?2, ?3, ?4)
            ON CONFLICT (host) DO UPDATE SET address = excluded.address,
                last_seen = excluded.last_seen, document = excluded.document";
        let values = params![
            bounded("the peer's name", &peer.host)?,
            bounded("the peer's address", &peer.address)?,
            peer.last_seen.map(micros),
            peer.document.encode("the peer")?,
        ];
        self.execute(sql, values).doing("save a peer")?;
        Ok(())
    }

    /// Whether there was a peer of this name; it is gone.
    ///
    /// # Errors
    /// Accidents of the catalog.
    pub fn peer_remove(&self, host: &str) -> Result<bool, CatalogError> {
        self.execute("DELETE FROM peer WHERE host = ?1", [host])
            .doing("remove a peer")
            .map(|removed| removed > 0)
    }
}

fn peer(row: &Row<'_>) -> rusqlite::Result<Peer> {
    Ok(Peer {
        host: row.get("host")?,
        address: row.get("address")?,
        last_seen: column::optional_time(row, "last_seen")?,
        document: column::document(row, "document")?,
    })
}
