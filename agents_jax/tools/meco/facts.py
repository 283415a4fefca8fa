"""Short facts with one-word answers, for the question whether a model knows them itself.

Written for this project from general knowledge: symbols of the elements, capitals of countries.
"""

from __future__ import annotations

ELEMENTS = (
    "Hydrogen H, Helium He, Lithium Li, Beryllium Be, Boron B, Carbon C, Nitrogen N, Oxygen O, "
    "Fluorine F, Neon Ne, Sodium Na, Magnesium Mg, Aluminium Al, Silicon Si, Phosphorus P, "
    "Sulfur S, Chlorine Cl, Argon Ar, Potassium K, Calcium Ca, Scandium Sc, Titanium Ti, "
    "Vanadium V, Chromium Cr, Manganese Mn, Iron Fe, Cobalt Co, Nickel Ni, Copper Cu, Zinc Zn, "
    "Gallium Ga, Germanium Ge, Arsenic As, Selenium Se, Bromine Br, Krypton Kr, Rubidium Rb, "
    "Strontium Sr, Yttrium Y, Zirconium Zr, Niobium Nb, Molybdenum Mo, Technetium Tc, "
    "Ruthenium Ru, Rhodium Rh, Palladium Pd, Silver Ag, Cadmium Cd, Indium In, Tin Sn, "
    "Antimony Sb, Tellurium Te, Iodine I, Xenon Xe, Caesium Cs, Barium Ba, Lanthanum La, "
    "Cerium Ce, Praseodymium Pr, Neodymium Nd, Promethium Pm, Samarium Sm, Europium Eu, "
    "Gadolinium Gd, Terbium Tb, Dysprosium Dy, Holmium Ho, Erbium Er, Thulium Tm, Ytterbium Yb, "
    "Lutetium Lu, Hafnium Hf, Tantalum Ta, Tungsten W, Rhenium Re, Osmium Os, Iridium Ir, "
    "Platinum Pt, Gold Au, Mercury Hg, Thallium Tl, Lead Pb, Bismuth Bi, Polonium Po, "
    "Astatine At, Radon Rn, Francium Fr, Radium Ra, Actinium Ac, Thorium Th, Protactinium Pa, "
    "Uranium U, Neptunium Np, Plutonium Pu"
)
"""Name and symbol, in the order of atomic numbers from 1."""

CAPITALS = (
    "Afghanistan Kabul, Albania Tirana, Algeria Algiers, Angola Luanda, Argentina Buenos_Aires, "
    "Armenia Yerevan, Australia Canberra, Austria Vienna, Azerbaijan Baku, Bahrain Manama, "
    "Bangladesh Dhaka, Belarus Minsk, Belgium Brussels, Belize Belmopan, Bhutan Thimphu, "
    "Botswana Gaborone, Brazil Brasilia, Bulgaria Sofia, Burkina_Faso Ouagadougou, "
    "Cambodia Phnom_Penh, Cameroon Yaounde, Canada Ottawa, Chad N'Djamena, Chile Santiago, "
    "China Beijing, Colombia Bogota, Croatia Zagreb, Cuba Havana, Cyprus Nicosia, Czechia Prague, "
    "Denmark Copenhagen, Ecuador Quito, Egypt Cairo, Eritrea Asmara, Estonia Tallinn, "
    "Ethiopia Addis_Ababa, Fiji Suva, Finland Helsinki, France Paris, Gabon Libreville, "
    "Gambia Banjul, Georgia Tbilisi, Germany Berlin, Ghana Accra, Greece Athens, Guinea Conakry, "
    "Guyana Georgetown, Haiti Port-au-Prince, Honduras Tegucigalpa, Hungary Budapest, "
    "Iceland Reykjavik, India New_Delhi, Indonesia Jakarta, Iran Tehran, Iraq Baghdad, "
    "Ireland Dublin, Italy Rome, Jamaica Kingston, Japan Tokyo, Jordan Amman, Kazakhstan Astana, "
    "Kenya Nairobi, Kyrgyzstan Bishkek, Laos Vientiane, Latvia Riga, Lebanon Beirut, "
    "Lesotho Maseru, Liberia Monrovia, Libya Tripoli, Lithuania Vilnius, Madagascar Antananarivo, "
    "Malawi Lilongwe, Malaysia Kuala_Lumpur, Maldives Male, Mali Bamako, Malta Valletta, "
    "Mauritania Nouakchott, Moldova Chisinau, Mongolia Ulaanbaatar, Montenegro Podgorica, "
    "Morocco Rabat, Mozambique Maputo, Namibia Windhoek, Nepal Kathmandu, "
    "Netherlands Amsterdam, New_Zealand Wellington, Nicaragua Managua, Niger Niamey, "
    "Nigeria Abuja, Norway Oslo, Oman Muscat, Pakistan Islamabad, Paraguay Asuncion, Peru Lima, "
    "Philippines Manila, Poland Warsaw, Portugal Lisbon, Qatar Doha, Romania Bucharest, "
    "Russia Moscow, Rwanda Kigali, Samoa Apia, Saudi_Arabia Riyadh, Senegal Dakar, "
    "Serbia Belgrade, Slovakia Bratislava, Slovenia Ljubljana, Somalia Mogadishu, "
    "South_Korea Seoul, Spain Madrid, Sudan Khartoum, Suriname Paramaribo, Sweden Stockholm, "
    "Switzerland Bern, Syria Damascus, Tajikistan Dushanbe, Thailand Bangkok, Togo Lome, "
    "Tunisia Tunis, Turkey Ankara, Turkmenistan Ashgabat, Uganda Kampala, Ukraine Kyiv, "
    "Uruguay Montevideo, Uzbekistan Tashkent, Vanuatu Port_Vila, Venezuela Caracas, "
    "Vietnam Hanoi, Yemen Sanaa, Zambia Lusaka, Zimbabwe Harare"
)
"""Country and capital, '_' for a blank."""


def pairs(table: str) -> list[tuple[str, str]]:
    """Entries of a table as (subject, answer)."""
    out = []
    for entry in table.split(", "):
        subject, answer = entry.split(" ")
        out.append((subject.replace("_", " "), answer.replace("_", " ")))
    return out
