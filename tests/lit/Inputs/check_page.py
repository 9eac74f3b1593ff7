"""Is a page well-formed XML that stands by itself? python3 check_page.py PAGE"""
import sys
import xml.etree.ElementTree as xml

root = xml.parse(sys.argv[1]).getroot()
problems, ids = [], set()
for element in root.iter():
    if element.tag in ("script", "link", "img", "iframe", "object"): problems.append(f"<{element.tag}>")
    if element.get("id") in ids: problems.append(f"id {element.get('id')} twice")
    if element.get("id"): ids.add(element.get("id"))
    for name, value in element.attrib.items():
        if name in ("src", "href") or name.startswith("on"): problems.append(f"{element.tag} {name}={value}")
        if element.tag not in ("td", "th") and ("nan" in value.split() or "inf" in value): problems.append(f"{element.tag} {name}={value}")
    text = element.text or ""
    if element.tag == "style" and ("url(" in text or "@import" in text): problems.append("styles from elsewhere")
    if element.tag in ("td", "li", "p", "title", "text") and ("nan" in text.split() or "inf" in text.split()): problems.append(f"{element.tag}: {text}")
for element in root.iter():
    fill = element.get("fill", "")
    if fill.startswith("url(#") and fill[5:-1] not in ids: problems.append(f"no {fill}")
print("\n".join(problems) or f"page: ok, {sum(1 for e in root.iter('svg') if e.get('role') == 'img')} pictures")
sys.exit(bool(problems))
