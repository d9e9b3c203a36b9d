"""XMP packets of photos: the list of a file's pictures goes in, what describes lost ones goes out.

References:
    Adobe XMP part 1 (RDF) and part 3, 1.1.3 (JPEG). Ultra HDR Image Format v1.1 (Android), for the
    container directory.
"""

from xml.dom import minidom
from xml.parsers.expat import ExpatError

HDRGM_URI = "http://ns.adobe.com/hdr-gain-map/1.0/"

_CONTAINER_URI = "http://ns.google.com/photos/1.0/container/"
_RDF_URI = "http://www.w3.org/1999/02/22-rdf-syntax-ns#"
_XMLNS_URI = "http://www.w3.org/2000/xmlns/"
# Vocabularies that describe other pictures behind the photo.
_STALE_URIS = (
    HDRGM_URI,
    _CONTAINER_URI,
    f"{_CONTAINER_URI}item/",
    "http://ns.apple.com/HDRGainMap/1.0/",
)
# Google's words for a film behind the photo.
_STALE_NAMES = ("MicroVideo", "MotionPhoto")
_END_OF_RDF = b"</rdf:RDF>"


def make_packet(description: str) -> str:
    """Wrap an ``rdf:Description`` element as an XMP packet."""
    return (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
        f'<rdf:RDF xmlns:rdf="{_RDF_URI}">{description}</rdf:RDF></x:xmpmeta>'
    )


def container_directory(gain_map_size: int) -> str:
    """Return the description that lists a photo and the gain map of so many bytes behind it."""
    items = "".join(
        f'<rdf:li rdf:parseType="Resource"><Container:Item Item:Semantic="{semantic}" '
        f'Item:Mime="image/jpeg"{length}/></rdf:li>'
        for semantic, length in (("Primary", ""), ("GainMap", f' Item:Length="{gain_map_size}"'))
    )
    return (
        f'<rdf:Description rdf:about="" xmlns:Container="{_CONTAINER_URI}" '
        f'xmlns:Item="{_CONTAINER_URI}item/" xmlns:hdrgm="{HDRGM_URI}" hdrgm:Version="1.0">'
        f"<Container:Directory><rdf:Seq>{items}</rdf:Seq></Container:Directory></rdf:Description>"
    )


def merge_packet(packet: bytes, description: str, room: int) -> bytes | None:
    """Add a description to the packet of a photo.

    The rest stays as it is, byte by byte, but for blanks at the end where room is short. A packet
    that tells of an older gain map, of further pictures or of a film behind the photo is written
    anew without them.

    Args:
        packet: bytes of the packet, UTF-8.
        description: an ``rdf:Description`` element.
        room: bytes that the result may have.

    Returns:
        The new packet, or None where the old one is damaged or leaves no room.
    """
    if any(word.encode() in packet for word in (*_STALE_URIS, *_STALE_NAMES)):
        packet = _without_stale(packet)
    end = packet.rfind(_END_OF_RDF)
    if end < 0:
        return None
    merged = packet[:end] + description.encode() + packet[end:]
    if len(merged) > room:
        # Packets end with blanks, so that editors can write in place.
        body, trailer, rest = merged.rpartition(b"<?xpacket end")
        merged = body.rstrip() + trailer + rest if trailer else merged.rstrip()
    return merged if len(merged) <= room else None


def _without_stale(packet: bytes) -> bytes:
    """Return the packet without the stale properties, or nothing where it is no XML."""
    # Entities could grow without bound; XMP has none.
    if b"<!" in packet:
        return b""
    # The packet's wrapper: instructions before and behind, blanks, and zeros of some cameras.
    body = packet[packet.find(b"<x:xmpmeta") :].partition(b"<?xpacket end")[0]
    try:
        document = minidom.parseString(body.strip(b" \t\r\n\0"))
    except ExpatError:
        return b""
    for element in document.getElementsByTagName("*"):
        if _is_stale(element) and element.parentNode is not None:
            element.parentNode.removeChild(element)
            continue
        for attribute in list((element.attributes or {}).values()):
            declares = attribute.namespaceURI == _XMLNS_URI and attribute.value in _STALE_URIS
            if declares or _is_stale(attribute):
                element.removeAttributeNode(attribute)
    for description in document.getElementsByTagNameNS(_RDF_URI, "Description"):
        names = [attribute.nodeName for attribute in (description.attributes or {}).values()]
        said = [name for name in names if not name.startswith(("xmlns", "rdf:about"))]
        if not said and not description.getElementsByTagName("*") and description.parentNode:
            description.parentNode.removeChild(description)
    root = document.documentElement
    return root.toxml().encode() if root is not None else b""


def _is_stale(node: minidom.Element | minidom.Attr) -> bool:
    name = node.localName or ""
    return node.namespaceURI in _STALE_URIS or name.startswith(_STALE_NAMES)
