"""The paper's numbers, read twice."""

from timet.paper.tables import TABLES

# what the paper prints, read a second time from the page, one or more numbers of every table
PRINTED = """
table1a 10 LC 37.5 | table1a 50 K=500 40.5 | table1a 300 K=21 9.0 | table1b 4_frames,_0.2_s K=21 7.4
table1b 4_frames,_1.0_s LC 57.1 | table1c 2_frames,_2.0_s K=500 37.1 | table1c 8_frames,_2.0_s K=500 42.3
table2 Identity LC 55.3 | table2 logits K=21 6.6 | table2 None K=500 26.2 | table3 MSN_ViT-S/16 TimeT_LC 67.2
table3 iBOT_ViT-S/16 init_LC 62.1 | table3 DINO_ViT-S/8 TimeT_K=500 53.9 | table3 DINO_ViT-B/16 init_K=500 28.9
table4 ResNet-50 YTVOS_D 1.7 | table4 SwAV DAVIS_over_D 25.7 | table4 DINO DAVIS_C 31.0 | table4 DINO YTVOS_over_F 66.2
table4 Leopart DAVIS_D 16.5 | table4 STEGO* YTVOS_over_C 54.3 | table4 DINO* DAVIS_over_D 8.6 | table4 Leopart* DAVIS_F 37.5
table4 TimeT DAVIS_over_C 61.5 | table4 TimeT YTVOS_D 13.3 | table4 TimeT YTVOS_over_D 15.8 | table5 SwAV K=21 11.6
table5 DenseCL FCN 69.4 | table5 STEGO LC 59.1 | table5 Leopart* K=500 21.2 | table5 Flowdino LC 59.4 | table5 TimeT FCN 70.6
table6 DINO YTVOS 32.1 | table6 Leopart DAVIS 37.3 | table6 TimeT VOC 63.9 | table7 Leopart F 24.1 | table7 TimeT C 21.5
table8 MAE_B/16 mIoU 6.6 | table8 MoCo-v3_S/16 mIoU 19.5 | table8 Hummingbird_B/16 mIoU 70.5 | table8 TimeT_B/16 mIoU 65.5
table9 DUL F 28.2 | table9 Motion_Grp D 1.5 | table9 TimeT C 55.5 | table10 K=150 mIoU 48.2 | table10 DINO mIoU 4.6
table11 0.1_s FF 39.8 | table11 0.2_s GT0 25.7 | table11 0.4_s Flow 26.1 | table11 0.8_s FF 37.5
"""


def test_numbers_are_the_papers() -> None:
    checked = set()
    for entry in PRINTED.replace("\n", "|").split("|"):
        if entry.strip():
            name, row, column, value = entry.split()
            assert TABLES[name].value(row.replace("_", " "), column.replace("_", " ")) == float(value), entry
            checked.add(name)
    assert checked == set(TABLES)
    assert sum(len(t.rows) for t in TABLES.values()) == 4 * 5 + 8 + 12 + 4 + 3 + 12 + 3 + 4 + 4


def test_table_shapes_and_dashes() -> None:
    assert TABLES["table5"].value("MaskContrast", "FCN") is None
    for table in TABLES.values():
        assert all(len(row) == len(table.columns) for row in table.rows.values())
        assert table.protocol and table.data and table.quoted <= set(table.rows)
    assert any("31.4" in r for r in TABLES["table3"].remarks)
    assert any("foreground" in r for r in TABLES["table5"].remarks)
