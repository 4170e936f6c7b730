//! Where the tree is, and what cargo knows of the crates in it.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::process;

/// The project's tree and the crates that are members of it.
#[derive(Debug)]
pub struct Workspace {
    /// The directory of the workspace's `Cargo.toml`.
    pub root: PathBuf,
    /// Where cargo builds: `target` in the root unless configured otherwise.
    pub target: PathBuf,
    /// The members, as cargo lists them.
    pub crates: Vec<Crate>,
}

/// One package, as `cargo metadata` describes it.
#[derive(Debug, Clone, Deserialize)]
pub struct Crate {
    pub name: String,
    pub dependencies: Vec<Dependency>,
    pub targets: Vec<Target>,
}

/// One line of a package's dependencies.
#[derive(Debug, Clone, Deserialize)]
pub struct Dependency {
    pub name: String,
    #[serde(default, deserialize_with = "absent_is_normal")]
    pub kind: DependencyKind,
}

/// The table of `Cargo.toml` that a dependency stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DependencyKind {
    #[default]
    Normal,
    Dev,
    Build,
}

/// Something that cargo builds from a package.
#[derive(Debug, Clone, Deserialize)]
pub struct Target {
    pub name: String,
    pub kind: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    packages: Vec<Crate>,
    target_directory: PathBuf,
    workspace_root: PathBuf,
}

fn absent_is_normal<'de, D>(deserializer: D) -> Result<DependencyKind, D::Error>
where
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

impl Workspace {
    /// Loads the workspace that this program was started from with cargo.
    pub fn load() -> Result<Self> {
        let Some(own) = env::var_os("CARGO_MANIFEST_DIR") else {
            bail!("find the workspace: CARGO_MANIFEST_DIR is not set; start this as `cargo xtask`");
        };
        Self::load_at(&Path::new(&own).join("Cargo.toml"))
    }

    /// Loads the workspace that the package or workspace at `manifest` is in.
    pub fn load_at(manifest: &Path) -> Result<Self> {
        let mut cargo = process::cargo();
        cargo
            .args(["metadata", "--format-version=1", "--no-deps"])
            .arg("--manifest-path")
            .arg(manifest);
        let json = process::output(&mut cargo)?;
        let metadata: Metadata = serde_json::from_str(&json)
            .with_context(|| format!("read the metadata of {}", manifest.display()))?;
        Ok(Self {
            root: metadata.workspace_root,
            target: metadata.target_directory,
            crates: metadata.packages,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_dependency_without_a_kind_is_a_normal_one() {
        let json = r#"[{"name":"a","kind":null},{"name":"b","kind":"dev"},{"name":"c"}]"#;
        let kinds: Vec<DependencyKind> = serde_json::from_str::<Vec<Dependency>>(json)
            .unwrap()
            .iter()
            .map(|dependency| dependency.kind)
            .collect();
        assert_eq!(
            kinds,
            [
                DependencyKind::Normal,
                DependencyKind::Dev,
                DependencyKind::Normal
            ]
        );
    }
}
