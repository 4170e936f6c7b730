//! The Debian package: built from the release program with `dpkg-deb`, installed, tried, removed.
//!
//! As root on a machine that has no Lifeboat it is installed into the system; everywhere else into
//! a folder, with a package database of its own. Neither needs a service manager.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use crate::process;
use crate::workspace::Workspace;

const SCRIPTS: [&str; 3] = ["postinst", "prerm", "postrm"];

/// The shells with their files of completions.
const COMPLETIONS: [(&str, &str); 3] = [
    ("bash", "usr/share/bash-completion/completions/lifeboat"),
    ("fish", "usr/share/fish/vendor_completions.d/lifeboat.fish"),
    ("zsh", "usr/share/zsh/vendor-completions/_lifeboat"),
];

/// Builds the package and tries it.
pub fn run(workspace: &Workspace) -> Result<()> {
    let package = build(workspace)?;
    try_out(workspace, &package)?;
    println!("package: {}", package.display());
    Ok(())
}

fn build(workspace: &Workspace) -> Result<PathBuf> {
    let mut cargo = process::cargo();
    cargo.args(["build", "--release", "--locked", "--package", "lifeboat"]);
    process::run(cargo.current_dir(&workspace.root))?;
    let tree = workspace.root.join("target/xtask/package");
    if tree.exists() {
        fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))?;
    }
    let program = tree.join("usr/bin/lifeboat");
    let built = workspace.root.join("target/release/lifeboat");
    copy(&built, &program, 0o755)?;
    process::run(Command::new("strip").arg("--strip-unneeded").arg(&program))?;
    let packaging = workspace.root.join("packaging");
    copy(
        &packaging.join("systemd/lifeboat.service"),
        &tree.join("usr/lib/systemd/system/lifeboat.service"),
        0o644,
    )?;
    copy(
        &packaging.join("debian/default"),
        &tree.join("etc/default/lifeboat"),
        0o644,
    )?;
    make_folder(&tree.join("etc/lifeboat"))?;
    add_generated(&program, &tree)?;
    add_documents(workspace, &tree)?;
    add_control(&packaging, &tree)?;
    set_folder_modes(&tree)?;
    let architecture = architecture()?;
    let version = env!("CARGO_PKG_VERSION");
    let package = workspace
        .root
        .join(format!("target/lifeboat_{version}_{architecture}.deb"));
    let mut pack = Command::new("dpkg-deb");
    pack.args(["--root-owner-group", "-Zxz", "-z1", "--build"]);
    process::run(pack.arg(&tree).arg(&package))?;
    Ok(package)
}

/// What the program writes of itself: manual pages and completions.
fn add_generated(program: &Path, tree: &Path) -> Result<()> {
    let pages = tree.join("usr/share/man/man1");
    make_folder(&pages)?;
    process::run(Command::new(program).args(["man", "--dir"]).arg(&pages))?;
    let written = files_below(&pages)?;
    if written.is_empty() {
        bail!("`lifeboat man --dir` wrote no pages");
    }
    process::run(Command::new("gzip").args(["-9", "-n"]).args(&written))?;
    for (shell, file) in COMPLETIONS {
        let script = process::output(Command::new(program).args(["completions", shell]))?;
        write(&tree.join(file), &script, 0o644)?;
    }
    for page in files_below(&pages)? {
        set_mode(&page, 0o644)?;
    }
    Ok(())
}

fn add_documents(workspace: &Workspace, tree: &Path) -> Result<()> {
    let to = tree.join("usr/share/doc/lifeboat");
    for name in ["README.md", "CHANGELOG.md", "GLOSSARY.md"] {
        copy(&workspace.root.join(name), &to.join(name), 0o644)?;
    }
    let documents = workspace.root.join("docs");
    for file in files_below(&documents)? {
        let name = file.strip_prefix(&documents).context("name a document")?;
        let is_wanted = file
            .extension()
            .is_some_and(|kind| kind == "md" || kind == "json");
        if is_wanted && !name.starts_with("adr") {
            copy(&file, &to.join("docs").join(name), 0o644)?;
        }
    }
    let licenses = ["LICENSE-MIT", "LICENSE-APACHE"].map(|name| workspace.root.join(name));
    let mut copyright = "Lifeboat is licensed as MIT or Apache-2.0, as you like.\n".to_owned();
    for license in licenses {
        let text = fs::read_to_string(&license);
        copyright.push('\n');
        copyright.push_str(&text.with_context(|| format!("read {}", license.display()))?);
    }
    write(&to.join("copyright"), &copyright, 0o644)
}

fn add_control(packaging: &Path, tree: &Path) -> Result<()> {
    let control = tree.join("DEBIAN");
    let files = files_below(tree)?;
    let bytes: u64 = files
        .iter()
        .map(|file| fs::metadata(file).map_or(0, |known| known.len()))
        .sum();
    let text = format!(
        "Package: lifeboat\nVersion: {}\nArchitecture: {}\nMaintainer: Lifeboat maintainers <maintainers@lifeboat.invalid>\n\
         Installed-Size: {}\nDepends: libc6 (>= 2.36), libgcc-s1, passwd\nRecommends: ca-certificates\nSuggests: qemu-utils\n\
         Section: admin\nPriority: optional\nDescription: replication and disaster recovery for virtual machines\n \
         Keeps a ready copy of running virtual machines on another host, with recovery\n \
         points, test failover, failover, revert, commit and reverse.\n",
        env!("CARGO_PKG_VERSION"),
        architecture()?,
        bytes.div_ceil(1024),
    );
    let names: Result<Vec<&Path>, _> = files.iter().map(|file| file.strip_prefix(tree)).collect();
    let names = names.context("name the files")?;
    let sums = process::output(Command::new("md5sum").args(names).current_dir(tree))?;
    write(&control.join("control"), &text, 0o644)?;
    write(&control.join("conffiles"), "/etc/default/lifeboat\n", 0o644)?;
    write(&control.join("md5sums"), &sums, 0o644)?;
    for script in SCRIPTS {
        let from = packaging.join("debian").join(script);
        copy(&from, &control.join(script), 0o755)?;
    }
    Ok(())
}

/// Installs the package, uses it, removes it, and looks for what it left.
fn try_out(workspace: &Workspace, package: &Path) -> Result<()> {
    let trial = workspace.root.join("target/xtask/package-trial");
    if trial.exists() {
        fs::remove_dir_all(&trial).with_context(|| format!("remove {}", trial.display()))?;
    }
    let place = Place::choose(&trial)?;
    let had_group = has_group()?;
    process::run(place.dpkg(&["--install"]).arg(package))?;
    let used = use_it(&place, &trial.join("host"));
    let listed = process::output(&mut place.dpkg(&["--listfiles", "lifeboat"]));
    process::run(&mut place.dpkg(&["--purge", "lifeboat"]))?;
    // A package leaves its group, because files may be its; a trial does not.
    if !had_group && has_group()? {
        process::run(process::as_root("groupdel")?.arg("lifeboat"))?;
    }
    used?;
    let mut left = Vec::new();
    for path in listed?.lines() {
        let path = place.root.join(path.trim_start_matches('/'));
        // Folders may be others' too.
        if path.symlink_metadata().is_ok_and(|found| !found.is_dir()) {
            left.push(path.display().to_string());
        }
    }
    if place.root.join("etc/lifeboat").exists() {
        left.push("/etc/lifeboat".to_owned());
    }
    if !left.is_empty() {
        bail!("the package left after it was purged: {}", left.join(", "));
    }
    fs::remove_dir_all(&trial).with_context(|| format!("remove {}", trial.display()))
}

fn has_group() -> Result<bool> {
    let groups = fs::read_to_string("/etc/group").context("read /etc/group")?;
    Ok(groups.lines().any(|line| line.starts_with("lifeboat:")))
}

/// Makes a host with the installed program, and looks at what came with it.
fn use_it(place: &Place, host: &Path) -> Result<()> {
    let program = place.root.join("usr/bin/lifeboat");
    let version = process::output(Command::new(&program).arg("--version"))?;
    if version.trim() != concat!("lifeboat ", env!("CARGO_PKG_VERSION")) {
        bail!("the installed program says it is {version:?}");
    }
    let mut init = Command::new(&program);
    init.args(["init", "--name", "package.test", "--root"]);
    process::run(init.arg(host))?;
    for made in ["lifeboat.toml", "state/catalog.db", "state/pki"] {
        if !host.join(made).exists() {
            bail!("`lifeboat init` made no {made}");
        }
    }
    for file in [
        "usr/lib/systemd/system/lifeboat.service",
        "usr/share/man/man1/lifeboat.1.gz",
        "usr/share/doc/lifeboat/docs/operating.md",
        "usr/share/doc/lifeboat/copyright",
        "etc/default/lifeboat",
        "etc/lifeboat",
    ] {
        if !place.root.join(file).exists() {
            bail!("the package installed no {file}");
        }
    }
    Ok(())
}

/// Where the package is tried.
#[derive(Debug)]
struct Place {
    root: PathBuf,
    options: Vec<String>,
}

impl Place {
    fn choose(trial: &Path) -> Result<Self> {
        let owner = fs::metadata("/proc/self")
            .context("ask /proc who runs this")?
            .uid();
        let has_one =
            Path::new("/usr/bin/lifeboat").exists() || Path::new("/etc/lifeboat").exists();
        if owner == 0 && !has_one {
            make_folder(trial)?;
            return Ok(Self {
                root: PathBuf::from("/"),
                options: vec!["--force-depends".to_owned()],
            });
        }
        let root = trial.join("root");
        for folder in ["info", "updates", "triggers"] {
            make_folder(&root.join("var/lib/dpkg").join(folder))?;
        }
        write(&root.join("var/lib/dpkg/status"), "", 0o644)?;
        let options = [
            format!("--root={}", root.display()),
            "--force-not-root".to_owned(),
            "--force-script-chrootless".to_owned(),
            "--force-depends".to_owned(),
            // Nobody but root may write the system's log.
            format!("--log={}", trial.join("dpkg.log").display()),
        ];
        Ok(Self {
            root,
            options: options.to_vec(),
        })
    }

    fn dpkg(&self, action: &[&str]) -> Command {
        let mut dpkg = Command::new(process::find("dpkg").unwrap_or_else(|| "dpkg".into()));
        dpkg.args(&self.options).args(action);
        dpkg
    }
}

fn architecture() -> Result<String> {
    let printed = process::output(Command::new("dpkg").arg("--print-architecture"))?;
    Ok(printed.trim().to_owned())
}

/// All files below a folder, by name.
fn files_below(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let entries =
            fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("list {}", folder.display()))?
                .path();
            match path.is_dir() {
                true => folders.push(path),
                false => files.push(path),
            }
        }
    }
    files.sort();
    Ok(files)
}

/// Folders are for everybody to read, whatever the umask of whoever builds.
fn set_folder_modes(tree: &Path) -> Result<()> {
    let mut folders = vec![tree.to_owned()];
    while let Some(folder) = folders.pop() {
        set_mode(&folder, 0o755)?;
        let entries =
            fs::read_dir(&folder).with_context(|| format!("list {}", folder.display()))?;
        for entry in entries {
            let path = entry
                .with_context(|| format!("list {}", folder.display()))?
                .path();
            if path.is_dir() {
                folders.push(path);
            }
        }
    }
    // Configuration can name files with passwords.
    set_mode(&tree.join("etc/lifeboat"), 0o750)
}

fn copy(from: &Path, to: &Path, mode: u32) -> Result<()> {
    if let Some(folder) = to.parent() {
        make_folder(folder)?;
    }
    fs::copy(from, to).with_context(|| format!("copy {} to {}", from.display(), to.display()))?;
    set_mode(to, mode)
}

fn write(to: &Path, text: &str, mode: u32) -> Result<()> {
    if let Some(folder) = to.parent() {
        make_folder(folder)?;
    }
    fs::write(to, text).with_context(|| format!("write {}", to.display()))?;
    set_mode(to, mode)
}

fn make_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("make the folder {}", folder.display()))
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
        .with_context(|| format!("set the mode of {}", path.display()))
}
