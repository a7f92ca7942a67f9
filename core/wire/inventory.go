package wire

import (
	"github.com/rbee-project/rbee/core"
	queenv1 "github.com/rbee-project/rbee/proto/queen/v1"
)

// InventoryToProto converts an inventory for a report. It omits hives, loaders, files and the
// details that only a query for a single model returns.
func InventoryToProto(v core.Inventory) *queenv1.Inventory {
	return &queenv1.Inventory{Models: All(v.Models, storedToProto), Offers: All(v.Offers, offerToProto), OffersKnown: v.OffersKnown}
}

// InventoryFromProto reverses InventoryToProto.
func InventoryFromProto(p *queenv1.Inventory) core.Inventory {
	return core.Inventory{Models: All(p.GetModels(), storedFromProto), Offers: All(p.GetOffers(), offerFromProto), OffersKnown: p.GetOffersKnown()}
}

func storedToProto(m core.Model) *queenv1.StoredModel {
	return &queenv1.StoredModel{
		Id:            m.ID,
		Aliases:       m.Aliases,
		Ref:           m.Ref,
		Digest:        m.Digest,
		SizeBytes:     m.SizeBytes,
		License:       m.License,
		Architecture:  m.Architecture,
		Quantization:  m.Quantization,
		Parameters:    m.Parameters,
		ContextTokens: int64(m.ContextTokens),
		CreatedAt:     timeToProto(m.CreatedAt),
		EstimateBytes: m.EstimateBytes,
		Damaged:       m.Damaged,
	}
}

func storedFromProto(m *queenv1.StoredModel) core.Model {
	return core.Model{
		ID:            m.GetId(),
		Aliases:       filled(m.GetAliases()),
		Ref:           m.GetRef(),
		Digest:        m.GetDigest(),
		SizeBytes:     m.GetSizeBytes(),
		License:       m.GetLicense(),
		Architecture:  m.GetArchitecture(),
		Quantization:  m.GetQuantization(),
		Parameters:    m.GetParameters(),
		ContextTokens: int(m.GetContextTokens()),
		CreatedAt:     timeFromProto(m.GetCreatedAt()),
		Hives:         []string{},
		LoadedBy:      []string{},
		EstimateBytes: m.GetEstimateBytes(),
		Damaged:       m.GetDamaged(),
	}
}

func offerToProto(i core.CatalogItem) *queenv1.Offer {
	return &queenv1.Offer{Ref: i.Ref, Kind: i.Kind, Name: i.Name, Summary: i.Summary, SizeBytes: i.SizeBytes, License: i.License}
}

func offerFromProto(i *queenv1.Offer) core.CatalogItem {
	return core.CatalogItem{Ref: i.GetRef(), Kind: i.GetKind(), Name: i.GetName(), Summary: i.GetSummary(), SizeBytes: i.GetSizeBytes(), License: i.GetLicense()}
}
