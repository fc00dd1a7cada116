"""A second reader of Shale's layer files, which follows docs/format-vhd.md and shares no code with Shale.

    second_reader.py volume DATASTORE NAME[@SNAPSHOT] OUT     a volume, by its record
    second_reader.py foreign LEAF OUT                         a chain that somebody else wrote

It writes the disk to OUT as a raw file with holes, and prints a JSON object: the disk's size, its layers,
and what is damaged in them. Where the disk cannot be read, it prints what is wrong with which file and ends
with 1. Numbers in comments are sections of the document.
"""

import json
import os
import struct
import sys
import uuid
from urllib.parse import unquote

SECTOR, PAGE = 512, 4096
OUR_BLOCK = 2 << 20
MOST_SECTORS = 0xFF000000
NO_BLOCK = 0xFFFFFFFF
FIXED, DYNAMIC, DIFFERENCING = 2, 3, 4
MOST_FOREIGN_LAYERS = 32
LONGEST_PATH = 64 << 10


class Refused(Exception):
    """A file that is not what it should be."""


def need(fine, problem):
    if not fine:
        raise Refused(problem)


def up(number, unit):
    return -(-number // unit) * unit


# --- structures -----------------------------------------------------------------------------------


def check_sum(raw, at):
    """2.1: the complement of the sum of all bytes but the four of the sum itself."""
    wanted = ~(sum(raw) - sum(raw[at : at + 4])) & 0xFFFFFFFF
    need(struct.unpack_from(">I", raw, at)[0] == wanted, "the checksum is wrong")


class Footer:
    """2.1"""

    def __init__(self, raw):
        need(len(raw) == SECTOR and raw[:8] == b"conectix", "there is no footer")
        check_sum(raw, 64)
        (self.version, self.header_at) = struct.unpack_from(">IQ", raw, 12)
        self.creator = raw[28:32]
        self.creator_version = struct.unpack_from(">I", raw, 32)[0]
        self.size, cylinders, heads, per_track, self.kind = struct.unpack_from(">QHBBI", raw, 48)
        self.geometry = (cylinders, heads, per_track)
        self.uuid = uuid.UUID(bytes=raw[68:84])
        need(self.version >> 16 == 1, "the footer's version is not 1.x")
        need(self.kind in (FIXED, DYNAMIC, DIFFERENCING), f"the disk's type is {self.kind}")
        need(self.sectors() <= MOST_SECTORS, "it is larger than 2040 GiB")

    def sectors(self):
        """5, size: some creators mean the geometry."""
        cylinders, heads, per_track = self.geometry
        if self.creator in (b"vpc ", b"qemu") and self.geometry != (65535, 16, 255):
            return cylinders * heads * per_track
        return self.size // SECTOR


class Header:
    """2.3"""

    def __init__(self, raw):
        need(len(raw) == 1024 and raw[:8] == b"cxsparse", "there is no header")
        check_sum(raw, 36)
        self.bat_at, version, self.entries, self.block = struct.unpack_from(">QIII", raw, 16)
        need(version >> 16 == 1, "the header's version is not 1.x")
        self.parent = uuid.UUID(bytes=raw[40:56])
        self.parent_name = raw[64:576].decode("utf-16-be", "surrogatepass").split("\0")[0]
        # (platform, space, length, offset), those that are in use
        slots = (struct.unpack_from(">4sIIIQ", raw, 576 + 24 * slot) for slot in range(8))
        self.locators = [(code, space, len_, at) for code, space, len_, _, at in slots if code != bytes(4)]


# --- one layer ------------------------------------------------------------------------------------


class Layer:
    """A file of a chain. `read` gives sectors of the disk that it is the leaf of."""

    def __init__(self, path):
        self.path, self.parent, self.damage, self.bat = path, None, [], []
        self.file = open(path, "rb")
        self.len = os.fstat(self.file.fileno()).st_size

    def at(self, offset, count):
        """What of these bytes is in the file."""
        return os.pread(self.file.fileno(), count, offset) if 0 <= offset < self.len else b""

    def nothing(self, first, count):
        """Whether neither this layer nor one below it has any of these sectors."""
        if first >= self.sectors:
            return True
        last = min(first + count, self.sectors) - 1
        blocks = self.bat[first // self.per_block : last // self.per_block + 1]
        return all(block is None for block in blocks) and (not self.parent or self.parent.nothing(first, count))

    def read(self, first, count):
        """1: what is past this layer's end is zero, whatever stands below it."""
        inside = max(0, min(count, self.sectors - first))
        out, end = bytearray(), first + inside
        while first < end:
            block, within = divmod(first, self.per_block)
            run = min(end - first, self.per_block - within)
            out += self.part(block, within, run)
            first += run
        return bytes(out) + bytes((count - inside) * SECTOR)

    def absent(self, first, count):
        """1: sectors that are not in this file."""
        return self.parent.read(first, count) if self.parent else bytes(count * SECTOR)

    def part(self, block, within, count):
        """2.4: sectors of one block."""
        start, first = self.bat[block], block * self.per_block + within
        if start is None:
            return self.absent(first, count)
        if isinstance(start, Refused):
            raise start
        bits = self.at(start, self.bitmap_len)
        own = self.at(start + self.bitmap_len + within * SECTOR, count * SECTOR)
        mine = [bits[sector // 8] & (0x80 >> sector % 8) for sector in range(within, within + count)]
        if all(mine):
            return own
        below = self.absent(first, count)
        pieces = (slice(number * SECTOR, (number + 1) * SECTOR) for number in range(count))
        return b"".join((own if set_ else below)[piece] for set_, piece in zip(mine, pieces))


class Plain(Layer):
    """Data from the file's start on: a fixed disk, or Xen's raw parent."""

    def __init__(self, path, sectors=None, identity=None):
        super().__init__(path)
        self.sectors = -(-self.len // SECTOR) if sectors is None else sectors
        self.kind, self.uuid = FIXED, identity

    def nothing(self, first, count):
        return first >= self.sectors

    def read(self, first, count):
        inside = max(0, min(count, self.sectors - first))
        data = self.at(first * SECTOR, inside * SECTOR)
        return data + bytes(count * SECTOR - len(data))


def load_bat(layer, header, creator, headers_end):
    """2.4, 4, 5: where each block starts, None where it is not, Refused where it cannot be."""
    raw = layer.at(header.bat_at, 4 * layer.blocks)
    # what a block of ours takes starts with its page, and the BAT takes whole pages
    unit = PAGE if creator == b"shal" else SECTOR
    table_end = up(header.bat_at + 4 * layer.blocks, unit)
    takes, starts = layer.bitmap_len + header.block, []
    for block, entry in enumerate(struct.unpack(f">{layer.blocks}I", raw)):
        start, end = entry * SECTOR, entry * SECTOR + takes
        page = start - start % unit
        if entry == NO_BLOCK:
            layer.bat.append(None)
        elif page < headers_end or end > layer.len or (page < table_end and header.bat_at < end):
            problem = f"block {block} stands at {start}, which is no place for one"
            layer.damage.append(problem)
            layer.bat.append(Refused(problem))
        else:
            layer.bat.append(start)
            starts.append((start, block))
    starts.sort()
    for (one, a), (other, b) in zip(starts, starts[1:]):
        if one + takes > other:
            layer.damage.append(f"blocks {a} and {b} overlap")


def open_ours(path, identity, fixed):
    """4: a layer of ours."""
    layer = Layer(path)
    if fixed:
        footer = Footer(layer.at(layer.len - SECTOR, SECTOR))
        ours(footer, identity, FIXED)
        need(footer.size == layer.len - SECTOR, "the file is not its disk and a footer")
        return Plain(path, footer.size // SECTOR, footer.uuid)
    page = layer.at(0, PAGE)
    header = Header(page[512:1536])
    try:
        footer = Footer(page[:512])
    except Refused:
        need(layer.len % SECTOR == 0, "the copy is torn, and there is no tail")
        footer = Footer(layer.at(layer.len - SECTOR, SECTOR))
    ours(footer, identity, DYNAMIC, DIFFERENCING)
    layer.kind, layer.uuid, layer.header = footer.kind, footer.uuid, header
    layer.sectors, layer.per_block, layer.bitmap_len = footer.size // SECTOR, 4096, SECTOR
    layer.blocks = -(-layer.sectors // 4096)
    need(footer.header_at == 512, "the header is not at 512")
    need(header.block == OUR_BLOCK, f"blocks are of {header.block} bytes")
    need(header.entries == layer.blocks, "the BAT has another number of entries than the disk blocks")
    for number, (_, _, length, at) in enumerate(header.locators, 1):
        need(at == number * PAGE and length <= PAGE and at + PAGE <= layer.len, "a locator is not in its page")
    if footer.kind == DYNAMIC:
        need(not header.locators and header.parent.int == 0, "a dynamic disk names a parent")
    headers_end = PAGE * (1 + len(header.locators))
    need(header.bat_at % PAGE == 0 and header.bat_at >= headers_end, "the BAT stands elsewhere")
    need(header.bat_at + up(4 * layer.blocks, PAGE) <= layer.len, "the BAT is not in the file")
    load_bat(layer, header, footer.creator, headers_end)
    if footer.kind == DYNAMIC:
        for block, start in enumerate(layer.bat):
            if isinstance(start, int) and layer.at(start, SECTOR) != b"\xff" * SECTOR:
                layer.damage.append(f"the bitmap of block {block} is not all ones")
    return layer


def ours(footer, identity, *kinds):
    need(footer.creator == b"shal", f"its creator is {footer.creator}")
    need(footer.kind in kinds, f"its type is {footer.kind}")
    need(footer.size % SECTOR == 0, "its size is no multiple of a sector")
    need(footer.uuid == identity, f"it is disk {footer.uuid}")


def find_footer(layer):
    """5, footer"""
    places = [(layer.len - SECTOR, SECTOR, b"")]
    if layer.len % SECTOR == 511:
        places.append((layer.len - 511, 511, b"\0"))
    for at, length, rest in places:
        try:
            return Footer(layer.at(at, length) + rest)
        except Refused as refused:
            problem = refused
    try:
        footer = Footer(layer.at(0, SECTOR))
    except Refused:
        raise problem from None
    need(footer.kind != FIXED, "a fixed disk has no footer at its end")
    return footer


def open_foreign(path):
    """5: a file from elsewhere."""
    layer = Layer(path)
    footer = find_footer(layer)
    if footer.kind == FIXED:
        need(footer.sectors() * SECTOR <= layer.len, "the file is shorter than the disk")
        return Plain(path, footer.sectors(), footer.uuid)
    layer.header = header = Header(layer.at(footer.header_at, 1024))
    need(header.block >= SECTOR and header.block & (header.block - 1) == 0, "the block size is no power of two")
    layer.kind, layer.uuid, layer.sectors = footer.kind, footer.uuid, footer.sectors()
    layer.per_block = header.block // SECTOR
    layer.bitmap_len = SECTOR * -(-layer.per_block // 4096)
    layer.blocks = -(-layer.sectors // layer.per_block)
    need(header.entries >= layer.blocks, "the BAT has fewer entries than the disk has blocks")
    need(header.bat_at % SECTOR == 0, "the BAT is not on a sector")
    need(header.bat_at + up(4 * header.entries, SECTOR) <= layer.len, "the BAT is not in the file")
    headers_end = PAGE * (1 + len(header.locators)) if footer.creator == b"shal" else 1536
    load_bat(layer, header, footer.creator, headers_end)
    return layer


# --- chains ---------------------------------------------------------------------------------------


def in_file(path, open_it):
    """Opens a layer; what is wrong is said of its file."""
    try:
        return open_it()
    except (Refused, OSError) as problem:
        raise Refused(f"{os.path.basename(path)}: {problem}") from None


def open_ours_chain(folder, tip, fixed):
    """4: a layer's parent is the layer that its header names by UUID, in the same folder."""
    chain, wanted = [], tip
    while True:
        need(all(layer.uuid != wanted for layer in chain), f"the chain comes back to {wanted}")
        path = os.path.join(folder, f"{wanted}.vhd")
        layer = in_file(path, lambda: open_ours(path, wanted, wanted in fixed))
        if chain:
            chain[-1].parent = layer
        chain.append(layer)
        if layer.kind != DIFFERENCING:
            return chain
        wanted = layer.header.parent


def names_of_parent(layer):
    """5, parent: the last parts of all paths; relative ones first, then absolute, URLs, the header's."""
    paths = []
    for wanted in (b"W2ru", b"W2ku", b"MacX"):
        for code, _, length, at in layer.header.locators:
            raw = layer.at(at, length) if length <= LONGEST_PATH else b""
            if code == wanted and len(raw) == length > 0:
                wide = code != b"MacX"
                paths.append(raw.decode("utf-16-le", "surrogatepass") if wide else unquote(raw.decode()))
    paths.append(layer.header.parent_name)
    names = (path.replace("\\", "/").rsplit("/", 1)[-1].rstrip("\0") for path in paths)
    return [name for name in names if name not in ("", ".", "..")]


def open_foreign_parent(child):
    """5, parent: by its UUID, beside its child; links are not followed."""
    wanted = child.header.parent
    for name in names_of_parent(child):
        path = os.path.join(os.path.dirname(child.path), name)
        if not os.path.isfile(path) or os.path.islink(path):
            continue
        if wanted.int == 0:
            return Plain(path)
        found = in_file(path, lambda: open_foreign(path))
        if found.uuid == wanted:
            return found
    raise Refused(f"{os.path.basename(child.path)}: its parent {wanted} is not there")


def open_foreign_chain(leaf):
    chain = [in_file(leaf, lambda: open_foreign(leaf))]
    while chain[-1].kind == DIFFERENCING:
        child, parent = chain[-1], open_foreign_parent(chain[-1])
        need(parent.path not in [layer.path for layer in chain], f"the chain comes back to {parent.path}")
        need(parent.sectors <= child.sectors, f"{child.path} is smaller than its parent {parent.path}")
        child.parent = parent
        chain.append(parent)
        need(len(chain) <= MOST_FOREIGN_LAYERS, "the chain is too long")
    return chain


# --- volumes --------------------------------------------------------------------------------------


def one_or_more(value):
    return [uuid.UUID(one) for one in (value if isinstance(value, list) else [value])]


def records(datastore):
    """8: every volume's record; those in a set are newer."""
    volumes, sets = {}, []
    folder = os.path.join(datastore, "record")
    for name in sorted(os.listdir(folder)):
        with open(os.path.join(folder, name), encoding="utf-8") as file:
            record = json.load(file)
        need(record["format"] == 1, f"{name} is of an unknown format")
        if record["type"] == "set":
            sets.append(record)
        else:
            volumes[record["uuid"]] = record
    for volume in (volume for one in sets for volume in one["volumes"]):
        known = volumes.get(volume["uuid"])
        if known is None or known["revision"] < volume["revision"]:
            volumes[volume["uuid"]] = volume
    return list(volumes.values())


def open_volume(datastore, name):
    """8: (size, segment, chains) of a volume, or of its snapshot."""
    name, _, snapshot = name.partition("@")
    volumes = records(datastore)
    record = next(record for record in volumes if record["name"] == name)
    if snapshot:
        point = next(point for point in record["snapshots"] if point["name"] == snapshot)
        size, tip = point["size"], point["layer"]
    else:
        size, tip = record["size"], record["current"]["layer"]
    # a chain may pass into another volume's layers
    fixed = {layer for one in volumes for layer in one_or_more(one.get("fixed_layer", []))}
    segment = record.get("segment", MOST_SECTORS * SECTOR)
    folder = os.path.join(datastore, "layer")
    chains = [open_ours_chain(folder, layer, fixed) for layer in one_or_more(tip)]
    for number, chain in enumerate(chains):
        wanted = max(0, min(size - number * segment, segment))
        need(chain[0].sectors * SECTOR == wanted, f"{chain[0].path} is of another size than its record says")
    return size, segment, chains


def write(chain, out, start):
    """A chain into the raw file, from byte `start` on; zeros stay holes."""
    leaf = chain[0]
    for first in range(0, leaf.sectors, 4096):
        count = min(4096, leaf.sectors - first)
        if leaf.nothing(first, count):
            continue
        data = leaf.read(first, count)
        if data.count(0) < len(data):
            out.seek(start + first * SECTOR)
            out.write(data)


def main(words):
    chains, answer = [], {}
    try:
        if words[0] == "volume":
            size, segment, chains = open_volume(words[1], words[2])
        else:
            chains = [open_foreign_chain(words[1])]
            size = segment = chains[0][0].sectors * SECTOR
        layers = [layer for chain in chains for layer in chain]
        answer["layers"] = [os.path.basename(layer.path) for layer in layers]
        answer["damage"] = [f"{os.path.basename(layer.path)}: {what}" for layer in layers for what in layer.damage]
        answer["size"] = size
        with open(words[-1], "wb") as out:
            out.truncate(size)
            for number, chain in enumerate(chains):
                write(chain, out, number * segment)
    except Refused as refused:
        answer["refused"] = str(refused)
    print(json.dumps(answer))
    return 1 if "refused" in answer else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
