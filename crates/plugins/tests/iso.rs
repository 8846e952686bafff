//! Files of several extents in CD images, as records of one name, one after the other: tools make them of files beyond 4 GiB, this
//! makes them of small ones.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::process::Command;

use darner_plugins::Iso9660;
use darner_vfs::{Listing, ROOT, Vfs};

#[test]
fn the_extents_of_a_file_are_one_file() {
    let dir = tempfile::tempdir().unwrap();
    let make =
        "mkdir in; for n in 1 2 3; do seq $n 7 20000 | head -c $((n * 6144)) > in/part$n; done; echo other > in/zzz
        cat in/part1 in/part2 in/part3 > whole; xorriso -as mkisofs -quiet --norock -o x.iso in 2>/dev/null";
    let found = Command::new("bash").args(["-euc", "command -v xorriso"]).output().unwrap().status.success();
    if !found {
        eprintln!("SKIPPED: the_extents_of_a_file_are_one_file needs xorriso");
        return;
    }
    assert!(Command::new("bash").args(["-euc", make]).current_dir(dir.path()).status().unwrap().success());
    let mut image = std::fs::read(dir.path().join("x.iso")).unwrap();
    // The records of the first two go on in the next one.
    for name in [b"PART1.;1", b"PART2.;1"] {
        let at = image.windows(name.len()).position(|w| w == name).expect("a record has the name");
        image[at - 33 + 25] |= 0x80;
    }
    let file = File::options().read(true).write(true).open(dir.path().join("x.iso")).unwrap();
    file.write_all_at(&image, 0).unwrap();
    let fs = Iso9660::open(file).unwrap();
    let mut listing = Listing::new(10);
    fs.readdir(ROOT, 0, &mut listing).unwrap();
    let names: Vec<String> = listing.entries().iter().map(|e| String::from_utf8_lossy(&e.0).into_owned()).collect();
    assert_eq!(names, ["part1", "zzz"]);
    let whole = std::fs::read(dir.path().join("whole")).unwrap();
    let attr = fs.lookup(ROOT, b"part1").unwrap();
    assert_eq!(attr.size, whole.len() as u64);
    for (offset, len) in
        [(0, whole.len()), (6000, 300), (6144, 1), (18_000, 1000), (whole.len() - 5, 100), (whole.len(), 9)]
    {
        let mut buffer = vec![0; len];
        let n = fs.read(attr.node, offset as u64, &mut buffer).unwrap();
        assert_eq!(&buffer[..n], &whole[offset..(offset + len).min(whole.len())], "{offset} {len}");
    }
}
